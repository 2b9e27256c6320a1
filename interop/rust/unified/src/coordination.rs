//! Redis, by which the harness coordinates the two sides.

use std::time::Duration;

use libp2p::Multiaddr;
use redis::AsyncCommands;

use crate::{AnyError, Environment};

const POLL: Duration = Duration::from_millis(20);

/// The key under which a listener publishes its address.
fn key(environment: &Environment) -> String {
    format!("{}_listener_multiaddr", environment.test_key)
}

/// Publishes the address of the listener.
///
/// # Errors
/// Redis has not accepted it within [`Environment::timeout`].
pub async fn publish(environment: &Environment, address: &Multiaddr) -> Result<(), AnyError> {
    let (key, value) = (key(environment), address.to_string());
    until_it_answers(environment, || async {
        let mut redis = connect(environment).await?;
        let () = redis.set(&key, &value).await?;
        Ok(Some(()))
    })
    .await
}

/// Waits until the listener has published its address.
///
/// # Errors
/// There is none within [`Environment::timeout`], or it is no multiaddr.
pub async fn wait_for_listener(environment: &Environment) -> Result<Multiaddr, AnyError> {
    let key = key(environment);
    let address: String = until_it_answers(environment, || async {
        connect(environment).await?.get(&key).await
    })
    .await?;
    Ok(address.parse()?)
}

async fn connect(
    environment: &Environment,
) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
    let client = redis::Client::open(environment.redis.as_str())?;
    client.get_multiplexed_async_connection().await
}

/// Repeats what fails or finds nothing: the harness starts Redis, listener and dialler at once.
async fn until_it_answers<T, F>(
    environment: &Environment,
    attempt: impl Fn() -> F,
) -> Result<T, AnyError>
where
    F: Future<Output = redis::RedisResult<Option<T>>>,
{
    let mut last = "it has no address".to_owned();
    let repeated = async {
        loop {
            match attempt().await {
                Ok(Some(answer)) => return answer,
                Ok(None) => {}
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let answer = tokio::time::timeout(environment.timeout, repeated).await;
    answer.map_err(|_| format!("{}: {last}", environment.redis).into())
}
