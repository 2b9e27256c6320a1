//! Smoke.
use anabranch::{CloseOutcome, Endpoint, EndpointConfig, EngineKind, WebRtcDirectVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn echo() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    for (server_engine, client_engine) in [(EngineKind::Direct, EngineKind::Direct), (EngineKind::Str0m, EngineKind::Direct), (EngineKind::Direct, EngineKind::Str0m), (EngineKind::Str0m, EngineKind::Str0m)] {
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
    println!("--- server {server_engine:?}, client {client_engine:?}, {version:?}");
    let with = |engine| { let mut config = EndpointConfig::default(); config.engine = engine; config };
    let server = Endpoint::builder().endpoint_config(with(server_engine)).protocol("/echo").bind("127.0.0.1:0").await.unwrap();
    let client = Endpoint::builder().endpoint_config(with(client_engine)).dial_only().unwrap();
    let address = server.addresses().remove(0);
    println!("{address}");
    let s2 = server.clone();
    let task = tokio::spawn(async move {
        while let Some(incoming) = s2.accept().await {
            let c = incoming.accept().await.unwrap();
            println!("peer {:?}", c.peer_id());
            tokio::spawn(async move {
                while let Some(s) = c.accept().await.unwrap() {
                    tokio::spawn(async move { let (mut r, mut w) = s.into_split(); tokio::io::copy(&mut r, &mut w).await.unwrap(); println!("{:?}", w.finish().await); });
                }
            });
        }
    });
    let t = std::time::Instant::now();
    let c = client.connect_with(&address, version).await.unwrap();
    println!("connect {:?}", t.elapsed());
    for _ in 0..3 {
    let t = std::time::Instant::now();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let s = c.open("/echo").await.unwrap();
    println!("open {:?}", t.elapsed());
    let (mut r, mut w) = s.into_split();
    let d2 = data.clone();
    let wt = tokio::spawn(async move { w.write_all(&d2).await.unwrap(); w.finish().await.unwrap() });
    let mut got = vec![];
    r.read_to_end(&mut got).await.unwrap();
    assert!(got == data);
    assert_eq!(wt.await.unwrap(), CloseOutcome::Acked);
    println!("echo {:?}", t.elapsed());
    }
    println!("{:?}", c.stats());
    let t = std::time::Instant::now();
    c.close().await;
    println!("closed {:?} {:?}", t.elapsed(), c.close_reason());
    server.close().await;
    client.close().await;
    task.await.unwrap();
    println!("{:?} {}", t.elapsed(), server.is_idle());
    }}
}
