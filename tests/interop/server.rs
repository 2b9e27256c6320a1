//! A listener that serves all peers, and collects failures.
#![allow(dead_code)] // Each suite uses a part of it.

use std::net::IpAddr;
use std::time::Duration;

use anabranch::{Address, Config, Connection, Endpoint, EndpointConfig};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::failures::Failures;
use crate::responders::{self, Habits};

/// Time limit for open substreams to end, and for a peer to dial.
const LIMIT: Duration = Duration::from_secs(15);

/// The configuration of a listener.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) config: Config,
    pub(crate) endpoint: EndpointConfig,
    pub(crate) habits: Habits,
    /// Called with each established connection.
    pub(crate) prepare: fn(&Connection),
}

impl Serving {
    /// Default settings, except those of the environment.
    pub(crate) fn by_default(habits: Habits) -> Self {
        Self {
            config: Config::default(),
            endpoint: endpoint_config(),
            habits,
            prepare: |_| (),
        }
    }
}

/// Default settings with the engine that `ANABRANCH_ENGINE` names.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.engine = anabranch_str0m::from_env().expect("a known engine");
    config
}

/// Logs what `RUST_LOG` selects.
pub(crate) fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// A listener that serves every protocol.
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    serving: JoinHandle<()>,
    failures: Failures,
    connections: mpsc::UnboundedReceiver<Connection>,
}

impl Server {
    pub(crate) async fn start(ip: IpAddr, serving: Serving) -> Self {
        log();
        let mut config = serving.config.clone();
        config.protocols = responders::PROTOCOLS.map(str::to_owned).to_vec();
        let endpoint = Endpoint::builder()
            .config(config)
            .endpoint_config(serving.endpoint.clone())
            .bind((ip, 0))
            .await
            .expect("a socket");
        let failures = Failures::default();
        let (put, connections) = mpsc::unbounded_channel();
        let accepting = accept(endpoint.clone(), serving, put, failures.clone());
        Self {
            endpoint,
            serving: tokio::spawn(accepting),
            failures,
            connections,
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.endpoint.addresses().remove(0)
    }

    /// The next connection, for a test that opens substreams on it.
    pub(crate) async fn connection(&mut self) -> Connection {
        let next = timeout(LIMIT, self.connections.recv()).await;
        next.expect("the peer dials").expect("it serves")
    }

    /// Closes everything, and asserts that no responder has failed.
    pub(crate) async fn finish(self) {
        self.finish_with(&[]).await;
    }

    /// Closes everything, and asserts that exactly these failures occurred.
    pub(crate) async fn finish_with(self, failures: &[&str]) {
        drop(self.connections);
        assert_nothing_left(self.endpoint).await;
        self.serving.await.expect("serving does not panic");
        self.failures.assert_are(failures);
    }
}

async fn accept(
    endpoint: Endpoint,
    serving: Serving,
    connections: mpsc::UnboundedSender<Connection>,
    failures: Failures,
) {
    let mut tasks = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let own = endpoint.public_key();
        let (connections, failures) = (connections.clone(), failures.clone());
        let (habits, prepare) = (serving.habits, serving.prepare);
        tasks.spawn(async move {
            match incoming.accept().await {
                Ok(connection) => {
                    prepare(&connection);
                    // Without a test that takes it, it is dropped with the receiver.
                    let _ = connections.send(connection.clone());
                    responders::serve(connection, own, habits, failures).await;
                }
                Err(error) => failures.add("a dialler was not authenticated", &error),
            }
        });
    }
    drop(connections);
    while let Some(done) = tasks.join_next().await {
        done.expect("serving does not panic");
    }
}

/// Asserts that everything is closed: connections and routes.
pub(crate) async fn assert_nothing_left(endpoint: Endpoint) {
    timeout(LIMIT, endpoint.close())
        .await
        .expect("connections end with their peers");
    assert!(endpoint.is_idle(), "{endpoint:?}");
}

/// An endpoint that only dials, with default settings.
pub(crate) fn dialler(config: EndpointConfig) -> Endpoint {
    log();
    Endpoint::builder()
        .endpoint_config(config)
        .dial_only()
        .expect("defaults work")
}

pub(crate) async fn close(connection: Connection) {
    connection.close().await;
    assert!(connection.is_idle());
}
