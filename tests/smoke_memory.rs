//! Smoke.
use anabranch::carrier::memory::{MemoryConfig, pair};
use anabranch::{CloseOutcome, Config, Connection};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(start_paused = true)]
async fn echo() {
    for seed in 0..20 {
        let (a, b, faults) = pair(MemoryConfig::hostile(seed));
        let mut config = Config::default();
        config.protocols = vec!["/echo".into()];
        let config = Arc::new(config);
        let (ca, da) = Connection::over(a, config.clone());
        let (cb, db) = Connection::over(b, config);
        let ta = tokio::spawn(da);
        let tb = tokio::spawn(db);
        let server = tokio::spawn(async move {
            while let Some(s) = cb.accept().await.unwrap() {
                tokio::spawn(async move {
                    let (mut r, mut w) = s.into_split();
                    tokio::io::copy(&mut r, &mut w).await.unwrap();
                    assert_eq!(w.finish().await.unwrap(), CloseOutcome::Acked);
                });
            }
        });
        let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let s = ca.open("/echo").await.unwrap();
        let (mut r, mut w) = s.into_split();
        let d2 = data.clone();
        let wt = tokio::spawn(async move {
            w.write_all(&d2).await.unwrap();
            w.finish().await.unwrap()
        });
        let mut got = vec![];
        r.read_to_end(&mut got).await.unwrap();
        assert!(got == data);
        assert_eq!(wt.await.unwrap(), CloseOutcome::Acked);
        drop(r);
        println!("{:?}", ca.stats());
        ca.close().await;
        server.await.unwrap();
        println!("{:?} {:?}", ta.await, tb.await);
        assert_eq!(faults.open_channels(), 0);
    }
}
