#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anabranch_testkit::fuzzing::established_datagrams(bytes));
