//! The listener that the pages dial.

use std::net::IpAddr;
use std::time::Duration;

use anabranch::endpoint::WebSocketOptions;
use anabranch::websocket::{Origins, RequestPolicy};
use anabranch::{Config, Endpoint, EndpointConfig, Negotiation, Security};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::failures::Failures;
use crate::responders;

/// Time limit for connections to end.
const LIMIT: Duration = Duration::from_secs(20);

/// How the pages connect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) security: Security,
    pub(crate) is_websocket: bool,
}

/// As plain applications do.
pub(crate) const PLAIN: Way = Way {
    security: Security::CertificateHash,
    is_websocket: false,
};

pub(crate) struct Server {
    way: Way,
    pub(crate) endpoint: Endpoint,
    serving: JoinHandle<()>,
    notes: Failures,
}

impl Server {
    pub(crate) async fn start(ip: IpAddr, way: Way, configure: impl FnOnce(&mut Config)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut config = Config::default();
        if way.security == Security::CertificateHash {
            config.negotiation = Negotiation::ChannelLabel;
        }
        config.protocols = responders::PROTOCOLS.map(str::to_owned).to_vec();
        configure(&mut config);
        let endpoint = Endpoint::builder()
            .security(way.security)
            .config(config)
            .endpoint_config(EndpointConfig::default())
            .bind((ip, 0))
            .await
            .expect("a socket");
        if way.is_websocket {
            let mut requests = RequestPolicy::default();
            // The page in the browser has another origin.
            requests.origins = Origins::Any;
            let options = WebSocketOptions::default().with_requests(requests);
            endpoint
                .listen_websocket((ip, 0).into(), options)
                .expect("a socket");
        }
        let notes = Failures::default();
        Self {
            way,
            serving: tokio::spawn(serve(endpoint.clone(), notes.clone())),
            endpoint,
            notes,
        }
    }

    /// What the cases get: the address, and how it is authenticated.
    pub(crate) fn parameters(&self) -> String {
        let addresses = self.endpoint.peer_addresses();
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let is_wanted = |address: &&String| address.contains("/tcp/") == self.way.is_websocket;
        let address = addresses.iter().find(is_wanted).expect("it listens");
        let security = match self.way.security {
            Security::Noise => "noise",
            _ => "certificate-hash",
        };
        let peer = self.endpoint.peer_id();
        let address = format!(r#""address":"{address}","addresses":{addresses:?}"#);
        format!(r#"{{{address},"security":"{security}","peerId":"{peer}"}}"#)
    }

    /// Waits for a note.
    pub(crate) async fn noted(&self, what: &str) {
        while !self.notes.have(what) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Closes the endpoint, whatever was noted.
    pub(crate) async fn close(self) {
        let closed = timeout(LIMIT, self.endpoint.close()).await;
        closed.expect("connections end with their pages");
        let served = timeout(LIMIT, self.serving).await;
        served
            .expect("responders end with their connections")
            .expect("serving does not panic");
        assert!(self.endpoint.is_idle(), "{:?}", self.endpoint);
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
