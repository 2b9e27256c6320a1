#![no_main]

use anabranch_testkit::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::noise_and_multistream(bytes));
