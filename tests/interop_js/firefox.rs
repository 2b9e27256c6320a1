//! js-libp2p in headless Firefox, with each of Firefox's two implementations of SCTP.
//!
//! Firefox gathers no candidate in 127.0.0.0/8, and so dials another address of this machine.
//! Without one, `interop/js/setup.sh` adds one.

use crate::{
    CASES, Dialling, Runtime, answers_a_challenge, dials_us, gets_the_first_noise_message,
};

pub(crate) const DCSCTP: Runtime = Runtime::Firefox("dcsctp");
const USRSCTP: Runtime = Runtime::Firefox("usrsctp");

/// Firefox with usrsctp hangs when several channels send much at once, with any peer: it fills the
/// buffer with whole messages and a part of another, usrsctp sends nothing before it has the rest
/// of that, and Firefox waits for more room than is left.
const NOT_WITH_USRSCTP: &str = "bulk-3x4m";

/// Every case except the one that hangs.
fn cases_of_usrsctp() -> Vec<&'static str> {
    let cases = CASES.iter().copied();
    cases.filter(|case| *case != NOT_WITH_USRSCTP).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_dcsctp_dials_us() {
    dials_us(DCSCTP, Dialling::V1, &CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_usrsctp_dials_us() {
    dials_us(USRSCTP, Dialling::V1, &cases_of_usrsctp()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_dcsctp_dials_us_with_v2() {
    dials_us(DCSCTP, Dialling::V2, &CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_usrsctp_dials_us_with_v2() {
    dials_us(USRSCTP, Dialling::V2, &cases_of_usrsctp()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_gets_the_first_noise_message_over_v2() {
    for runtime in [DCSCTP, USRSCTP] {
        gets_the_first_noise_message(runtime, &[], None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_answers_a_challenge() {
    answers_a_challenge(DCSCTP, &CASES).await;
}
