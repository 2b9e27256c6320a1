//! What one node costs that has many peers: a process listens, the other dials it from many nodes,
//! and reads from `/proc` what the first one needs.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, request_response};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{AnyError, Behaviour, BehaviourEvent, LIMIT, over};

/// Dials at once.
const AT_ONCE: usize = 16;

/// With nothing but the pings of every node.
const IDLE: Duration = Duration::from_secs(30);

const FETCHED: u64 = 1 << 20;

/// What a process has used.
#[derive(Clone, Copy)]
struct Used {
    rss_kib: u64,
    cpu_ms: u64,
}

fn used(child: &Child) -> Result<Used, AnyError> {
    let pid = child.id().ok_or("the listener has ended")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rss| rss.split_whitespace().next());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may have spaces.
    let (_, stat) = stat.rsplit_once(')').ok_or("no state")?;
    let fields: Vec<&str> = stat.split_whitespace().collect();
    let [user, system] = [11, 12].map(|field| fields.get(field).copied().unwrap_or_default());
    let ticks = user.parse::<u64>()? + system.parse::<u64>()?;
    Ok(Used {
        rss_kib: rss.ok_or("no resident set")?.parse()?,
        // A tick has been 10 ms on every Linux of the last decades.
        cpu_ms: ticks * 10,
    })
}

/// Dials, and waits until both sides have identified each other and have pinged once.
async fn join(transport: &str, address: Multiaddr) -> Result<Swarm<Behaviour>, AnyError> {
    let mut swarm = over(transport, crate::PING_IDLE)?;
    swarm.dial(address)?;
    let (mut is_pinged, mut is_identified) = (false, false);
    while !(is_pinged && is_identified) {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => {
                event.result?;
                is_pinged = true;
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(
                libp2p::identify::Event::Received { .. },
            )) => is_identified = true,
            SwarmEvent::ConnectionClosed { cause, .. } => {
                return Err(format!("closed: {cause:?}").into());
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Ok(swarm)
}

async fn fetch(swarm: &mut Swarm<Behaviour>) -> Result<(), AnyError> {
    let peer = *swarm.connected_peers().next().ok_or("it has no peer")?;
    swarm.behaviour_mut().fetch.send_request(&peer, FETCHED);
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Fetch(event)) => match event {
                request_response::Event::Message { .. } => return Ok(()),
                request_response::Event::OutboundFailure { error, .. } => return Err(error.into()),
                _ => {}
            },
            SwarmEvent::ConnectionClosed { cause, .. } => {
                return Err(format!("closed: {cause:?}").into());
            }
            _ => {}
        }
    }
}

/// Prints a line of JSON: memory and CPU of the listener alone.
pub async fn crowd(transport: &str, count: usize) -> Result<(), AnyError> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([transport, "serve"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no pipe")?;
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address).await?;
    let address: Multiaddr = address.trim().parse()?;

    // One connection has been there before: what is allocated once is not counted.
    let first = join(transport, address.clone()).await?;
    let before = used(&child)?;
    let begun = Instant::now();
    let dials = (0..count).map(|_| join(transport, address.clone()));
    let joined: Vec<_> = stream::iter(dials)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let took = begun.elapsed();
    let joined: Result<Vec<_>, AnyError> = joined.into_iter().collect();
    let mut swarms = joined?;
    let established = used(&child)?;

    // Each node runs on, or its pings would fail.
    let mut idle: FuturesUnordered<_> = swarms
        .iter_mut()
        .map(|swarm| async {
            loop {
                if let SwarmEvent::ConnectionClosed { cause, .. } = swarm.select_next_some().await {
                    return cause;
                }
            }
        })
        .collect();
    tokio::select! {
        closed = idle.next() => return Err(format!("closed: {closed:?}").into()),
        () = tokio::time::sleep(IDLE) => {}
    }
    drop(idle);
    let idled = used(&child)?;

    let fetches = swarms.iter_mut().map(fetch);
    let fetching = stream::iter(fetches).buffer_unordered(AT_ONCE).collect();
    let fetched: Vec<Result<(), AnyError>> = tokio::time::timeout(4 * LIMIT, fetching).await?;
    fetched.into_iter().collect::<Result<(), AnyError>>()?;
    let fetched = used(&child)?;
    drop(first);
    println!(
        "{{\"transport\":\"{transport}\",\"connections\":{count},\"kib_per_connection\":{:.1},\
         \"dials_per_s\":{:.0},\"cpu_ms_per_dial\":{:.2},\"idle_cpu_ms_per_s\":{:.1},\
         \"cpu_ms_per_mib\":{:.2},\"rss_after_kib\":{}}}",
        (idled.rss_kib.saturating_sub(before.rss_kib)) as f64 / count as f64,
        count as f64 / took.as_secs_f64(),
        (established.cpu_ms - before.cpu_ms) as f64 / count as f64,
        (idled.cpu_ms - established.cpu_ms) as f64 / IDLE.as_secs_f64(),
        (fetched.cpu_ms - idled.cpu_ms) as f64 / count as f64,
        fetched.rss_kib,
    );
    Ok(())
}
