//! ECN codepoints on simulated paths.

use anabranch::udp::{DatagramSocket, Transmit};

use super::*;

#[tokio::test(start_paused = true)]
async fn codepoints_arrive_as_sent_or_marked_in_a_long_queue_or_cleared() {
    use Ecn::{Ce, Ect0, Ect1, NotEct};

    let queue = Conditions {
        rate: Some(100_000),
        mark_above: Some(1000),
        ..Conditions::default()
    };
    let clearing = Conditions {
        clears_ecn: true,
        ..queue
    };
    for (conditions, expected, marked) in [
        (Conditions::default(), [Ect0, NotEct, Ect0, Ect1, Ce], 0),
        (queue, [Ect0, NotEct, Ce, Ce, Ce], 2),
        (clearing, [NotEct; 5], 0),
    ] {
        let pair = Pair::new(1, conditions);
        for ecn in [Ect0, NotEct, Ect0, Ect1, Ce] {
            let contents = [7; 972];
            let transmit = Transmit::new(pair.b.local_address(), &contents).with_ecn(ecn);
            pair.a.try_send(&transmit).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < 5 {
            std::future::poll_fn(|cx| {
                pair.b.poll_receive(cx, &mut |received| {
                    let count = received.contents.len() / received.stride;
                    arrived.extend(std::iter::repeat_n(received.ecn, count));
                })
            })
            .await
            .unwrap();
        }
        assert_eq!(arrived, expected);
        let counters = pair.network.counters();
        assert_eq!((counters.ect, counters.marked), (4, marked));
        pair.assert_nothing_left();
    }
}
