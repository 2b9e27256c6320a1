//! The application of the `transport` tests: the dialler connects, pings once and reports both
//! times; the listener answers until it is killed. Variables of the environment in
//! `unified::Environment`.

use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, ping};
use unified::{AnyError, Environment, listening_address, node, publish, wait_for_listener};

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let environment = Environment::read()?;
    eprintln!("{environment:?}");
    let behaviour = |_: &_| ping::Behaviour::new(ping::Config::new());
    let mut swarm = node(&environment, behaviour).await?;
    if !environment.is_dialer {
        let address = listening_address(&mut swarm, &environment).await?;
        publish(&environment, &address).await?;
        eprintln!("published {address}");
        loop {
            let event = swarm.select_next_some().await;
            if environment.debug {
                eprintln!("{event:?}");
            }
        }
    }
    let address = wait_for_listener(&environment).await?;
    eprintln!("dialling {address}");
    let dialled = dial(&mut swarm, address, environment.debug);
    let (handshake, ping) = tokio::time::timeout(environment.timeout, dialled).await??;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    println!("latency:");
    println!("  handshake_plus_one_rtt: {:.3}", milliseconds(handshake));
    println!("  ping_rtt: {:.3}", milliseconds(ping));
    println!("  unit: ms");
    Ok(())
}

/// The time from the dial to the first answer of ping, and the round trip that ping reports.
async fn dial(
    swarm: &mut Swarm<ping::Behaviour>,
    address: Multiaddr,
    debug: bool,
) -> Result<(Duration, Duration), AnyError> {
    let begin = Instant::now();
    swarm.dial(address)?;
    loop {
        let event = swarm.select_next_some().await;
        if debug {
            eprintln!("{event:?}");
        }
        match event {
            SwarmEvent::Behaviour(event) => return Ok((begin.elapsed(), event.result?)),
            SwarmEvent::ConnectionClosed { cause, .. } => {
                return Err(format!("closed: {cause:?}").into());
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
}
