//! Row O-R1: the documented defaults of all settings are those of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::connection::Config;
use crate::endpoint::EndpointConfig;
use crate::payload::PayloadConfig;
use crate::rates::RateLimit;
use crate::websocket::{ListenerConfig, RequestPolicy, WebSocketConfig};

const DOCUMENT: &str = include_str!("../../../docs/reliability.md");

fn time(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis % 3_600_000 == 0 => format!("{} h", millis / 3_600_000),
        millis if millis % 1000 == 0 => format!("{} s", millis / 1000),
        millis => format!("{millis} ms"),
    }
}

fn bytes(bytes: u64) -> String {
    if !bytes.is_multiple_of(1024) {
        return number(bytes);
    }
    match bytes / 1024 {
        kib if kib % 1024 == 0 => format!("{} MiB", kib / 1024),
        kib => format!("{kib} KiB"),
    }
}

fn number(number: u64) -> String {
    match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{thousands} {:03}", number % 1000),
    }
}

/// The burst, then the rate in a whole number of seconds.
fn rate(limit: RateLimit) -> String {
    let interval = limit.interval();
    let (count, seconds) = (1..)
        .map(|count| (count, interval * count))
        .find(|(_, time)| time.subsec_nanos() == 0)
        .expect("a whole number of seconds");
    let seconds = match seconds.as_secs() {
        1 => "a second".to_owned(),
        seconds => format!("each {seconds} s"),
    };
    format!("{}, then {count} {seconds}", limit.burst())
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Every field of every configuration, with its default as the documentation has to state it. The
/// structs are destructured, so that a new field has to be added here.
fn defaults() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    macro_rules! add {
        ($prefix:literal $($field:ident = $value:expr),* $(,)?) => {
            $(
                let name = format!("{}::{}", $prefix, stringify!($field));
                assert!(all.insert(name, $value).is_none());
            )*
        };
    }
    let Config {
        fin_ack_timeout,
        teardown_timeout,
        open_timeout,
        receive_window,
        max_receive_window,
        substream_ceiling,
        ceiling_policy,
        connection_ceiling,
        send_buffer,
        max_frame,
        max_frame_without_credit,
        max_inbound_substreams,
        accept_timeout,
        max_unused_substreams,
        max_frames_without_effect,
        idle_timeout,
        fin_ack,
        expect_fin_ack,
        negotiation,
        lazy_negotiation,
        protocols,
        events,
    } = Config::default();
    add! { "C"
        fin_ack_timeout = time(fin_ack_timeout),
        teardown_timeout = time(teardown_timeout),
        open_timeout = time(open_timeout),
        receive_window = bytes(receive_window.into()),
        max_receive_window = bytes(max_receive_window.into()),
        substream_ceiling = bytes(substream_ceiling as u64),
        ceiling_policy = format!("{ceiling_policy:?}").to_lowercase(),
        connection_ceiling = bytes(connection_ceiling as u64),
        send_buffer = bytes(send_buffer as u64),
        max_frame = number(max_frame as u64),
        max_frame_without_credit = number(max_frame_without_credit as u64),
        max_inbound_substreams = number(max_inbound_substreams as u64),
        accept_timeout = time(accept_timeout),
        max_unused_substreams = number(max_unused_substreams.into()),
        max_frames_without_effect = number(max_frames_without_effect.into()),
        idle_timeout = idle_timeout.map_or_else(|| "none".to_owned(), time),
        fin_ack = format!("{fin_ack:?}").to_lowercase(),
        expect_fin_ack = yes(expect_fin_ack),
        negotiation = match negotiation {
            crate::Negotiation::MultistreamSelect => "multistream-select".to_owned(),
            other => format!("{other:?}"),
        },
        lazy_negotiation = yes(lazy_negotiation),
        protocols = if protocols.is_empty() { "none".to_owned() } else { protocols.join(" ") },
        events = events.map_or("nobody", |_| "somebody").to_owned(),
    }
    let EndpointConfig {
        connect_timeout,
        websocket_head_start,
        address_delay,
        max_handshakes,
        max_handshakes_per_prefix,
        first_contacts,
        first_contacts_of_site,
        limit_loopback,
        max_addresses,
        max_connections,
        silence_timeout,
        max_dtls12_records,
        sockets,
        mtu,
        loopback_mtu,
        max_mtu,
        loopback_max_mtu,
        max_in_flight,
        receive_buffer,
        progress_timeout,
        congestion,
        ecn,
        engine,
    } = EndpointConfig::default();
    add! { "E"
        connect_timeout = time(connect_timeout),
        websocket_head_start = time(websocket_head_start),
        address_delay = time(address_delay),
        max_handshakes = number(max_handshakes as u64),
        max_handshakes_per_prefix = number(max_handshakes_per_prefix as u64),
        first_contacts = rate(first_contacts),
        first_contacts_of_site = rate(first_contacts_of_site),
        limit_loopback = yes(limit_loopback),
        max_addresses = number(max_addresses as u64),
        max_connections = number(max_connections as u64),
        silence_timeout = time(silence_timeout),
        max_dtls12_records = format!("2^{}", max_dtls12_records.ilog2()),
        sockets = number(sockets as u64),
        mtu = number(mtu as u64),
        loopback_mtu = number(loopback_mtu as u64),
        max_mtu = number(max_mtu as u64),
        loopback_max_mtu = number(loopback_max_mtu as u64),
        max_in_flight = bytes(max_in_flight as u64),
        receive_buffer = bytes(receive_buffer as u64),
        progress_timeout = time(progress_timeout),
        congestion = format!("{congestion:?}"),
        ecn = yes(ecn),
        engine = engine.name().to_owned(),
    }
    assert!(max_dtls12_records.is_power_of_two());
    let PayloadConfig {
        max_total,
        max_metadata,
        idle_timeout,
        time_limit,
        max_open,
        max_open_per_connection,
        progress_interval,
    } = PayloadConfig::default();
    add! { "P"
        max_total = bytes(max_total),
        max_metadata = bytes(max_metadata as u64),
        idle_timeout = time(idle_timeout),
        time_limit = time(time_limit),
        max_open = number(max_open as u64),
        max_open_per_connection = number(max_open_per_connection as u64),
        progress_interval = bytes(progress_interval),
    }
    let WebSocketConfig {
        handshake_timeout,
        ping_interval,
        idle_timeout,
        close_timeout,
        max_message,
        batch,
        control_backlog,
    } = WebSocketConfig::default();
    add! { "W"
        handshake_timeout = time(handshake_timeout),
        ping_interval = time(ping_interval),
        idle_timeout = time(idle_timeout),
        close_timeout = time(close_timeout),
        max_message = bytes(max_message as u64),
        batch = bytes(batch as u64),
        control_backlog = bytes(control_backlog as u64),
    }
    let ListenerConfig {
        max_handshakes,
        max_handshakes_per_prefix,
        connections,
        connections_of_site,
        limit_loopback,
        max_connections,
        proxies,
    } = ListenerConfig::default();
    add! { "L"
        max_handshakes = number(max_handshakes as u64),
        max_handshakes_per_prefix = number(max_handshakes_per_prefix as u64),
        connections = rate(connections),
        connections_of_site = rate(connections_of_site),
        limit_loopback = yes(limit_loopback),
        max_connections = number(max_connections as u64),
        proxies = proxies.map_or("none", |_| "some").to_owned(),
    }
    all
}

/// The rows of tables with the default of settings: the settings, and that cell.
fn rows() -> Vec<(Vec<String>, String)> {
    let mut rows = Vec::new();
    let mut columns = None;
    for line in DOCUMENT.lines() {
        let Some(line) = line.strip_prefix('|') else {
            columns = None;
            continue;
        };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.contains(&"field") {
            let column = |name| cells.iter().position(|cell| *cell == name);
            columns = column("field").zip(column("default"));
            continue;
        }
        let Some((field, default)) = columns else {
            continue;
        };
        let fields = cells[field].split('`').skip(1).step_by(2);
        let is_setting = |field: &&str| field.get(1..3) == Some("::");
        let fields: Vec<String> = fields.filter(is_setting).map(str::to_owned).collect();
        if !fields.is_empty() {
            rows.push((fields, cells[default].to_owned()));
        }
    }
    rows
}

/// The text after a value that occurs as a whole word: 1 s is not in 11 s, nor 1 MiB in 1 MiBit.
fn after<'a>(text: &'a str, value: &str) -> Option<&'a str> {
    text.match_indices(value).find_map(|(at, _)| {
        let before = text[..at].chars().next_back();
        let rest = &text[at + value.len()..];
        let is_part = |neighbour: char| neighbour.is_alphanumeric() || neighbour == '_';
        let goes_on = rest.starts_with(' ')
            && rest[1..].starts_with(|next: char| next.is_ascii_digit())
            && value.ends_with(|last: char| last.is_ascii_digit());
        let is_whole = !before.is_some_and(is_part) && !rest.starts_with(is_part) && !goes_on;
        is_whole.then_some(rest)
    })
}

#[test]
fn r1_the_documented_defaults_are_those_of_the_code() {
    let defaults = defaults();
    let mut documented = BTreeSet::new();
    for (fields, cell) in rows() {
        let mut rest = cell.as_str();
        for field in fields {
            let value = defaults
                .get(&field)
                .unwrap_or_else(|| panic!("{field} is documented and does not exist"));
            // In the order of the fields.
            rest = after(rest, value)
                .unwrap_or_else(|| panic!("{field} is {value}, documented: {cell}"));
            documented.insert(field);
        }
    }
    let all: BTreeSet<String> = defaults.into_keys().collect();
    assert_eq!(
        all.difference(&documented).count(),
        0,
        "{:?}",
        all.difference(&documented)
    );
    // The defaults of the request policy are in the prose.
    let RequestPolicy { hosts, paths, .. } = RequestPolicy::default();
    assert!(hosts.is_none() && DOCUMENT.contains("any host by default"));
    assert!(paths.is_none() && DOCUMENT.contains("any path by default"));
}

#[test]
fn values_are_found_as_a_whole_only() {
    for text in ["11 s", "1 second", "1 s2", "21 s"] {
        assert_eq!(after(text, "1 s"), None, "{text}");
    }
    assert_eq!(after("16 384", "16"), None);
    assert_eq!(after("2 h or 11 s, 1 s, then", "1 s"), Some(", then"));
}
