//! The listener that the pages dial.

use std::net::IpAddr;
use std::time::Duration;

use anabranch::{Config, Endpoint, EndpointConfig, Negotiation, Security};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::failures::Failures;
use crate::responders;

/// Time limit for connections to end.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    serving: JoinHandle<()>,
    notes: Failures,
}

impl Server {
    /// A listener for plain applications: the certificate hash authenticates it.
    pub(crate) async fn start(ip: IpAddr, configure: impl FnOnce(&mut Config)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut config = Config::default();
        config.negotiation = Negotiation::ChannelLabel;
        config.protocols = responders::PROTOCOLS.map(str::to_owned).to_vec();
        configure(&mut config);
        let endpoint = Endpoint::builder()
            .security(Security::CertificateHash)
            .config(config)
            .endpoint_config(EndpointConfig::default())
            .bind((ip, 0))
            .await
            .expect("a socket");
        let notes = Failures::default();
        Self {
            serving: tokio::spawn(serve(endpoint.clone(), notes.clone())),
            endpoint,
            notes,
        }
    }

    /// What the cases get: the address.
    pub(crate) fn parameters(&self) -> String {
        format!(r#"{{"address":"{}"}}"#, self.endpoint.addresses()[0])
    }

    /// Waits for the end of all connections, closes the endpoint, and asserts that exactly these
    /// notes were taken.
    pub(crate) async fn finish(self, notes: &[&str]) {
        timeout(LIMIT, self.endpoint.wait_idle())
            .await
            .expect("connections end with their pages");
        timeout(LIMIT, self.endpoint.close())
            .await
            .expect("nothing is left to close");
        assert!(self.endpoint.is_idle(), "{:?}", self.endpoint);
        let served = timeout(LIMIT, self.serving).await;
        served
            .expect("responders end with their connections")
            .expect("serving does not panic");
        self.notes.assert_are(notes);
    }
}

async fn serve(endpoint: Endpoint, notes: Failures) {
    let mut tasks = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let notes = notes.clone();
        tasks.spawn(async move {
            match incoming.accept().await {
                Ok(connection) => responders::serve(connection, notes).await,
                Err(error) => notes.add("not accepted", &error),
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("serving does not panic");
    }
}
