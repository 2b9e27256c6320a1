#![no_main]

use anabranch_testkit::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::established_datagrams(bytes));
