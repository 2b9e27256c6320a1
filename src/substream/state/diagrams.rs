//! The state diagrams of `ARCHITECTURE.md`, rendered from the transitions, so that they cannot
//! differ from them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;

use super::tests::{CHANNEL_STATES, EVENTS, READ_STATES, WRITE_STATES};
use super::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
const END: &str = "<!-- end of states -->";

/// Rewrites the page if it is set.
const BLESS: &str = "ANABRANCH_BLESS";

/// What an event does to one of the three states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step<S> {
    Stays,
    Goes(S),
    /// The peer broke the protocol, which resets the channel.
    Violates,
}

/// A state diagram in Mermaid's notation.
fn diagram<S>(initial: S, all: &[S], step: impl Fn(S, SubstreamEvent) -> Step<S>) -> String
where
    S: Copy + Debug + PartialEq,
{
    let mut states = vec![initial];
    let mut edges: Vec<(S, Step<S>, Vec<SubstreamEvent>)> = Vec::new();
    let mut at = 0;
    while let Some(&from) = states.get(at) {
        at += 1;
        for event in EVENTS {
            let to = step(from, event);
            if to == Step::Stays {
                continue;
            }
            if let Step::Goes(next) = to
                && !states.contains(&next)
            {
                states.push(next);
            }
            match edges.iter_mut().find(|edge| edge.0 == from && edge.1 == to) {
                Some((_, _, events)) => events.push(event),
                None => edges.push((from, to, vec![event])),
            }
        }
    }
    let names = |states: &[S]| states.iter().map(label).collect::<BTreeSet<_>>();
    assert_eq!(names(&states), names(all), "states that no event leads to");

    let has_exit = |state: &S| edges.iter().any(|(from, ..)| from == state);
    let mut lines = vec!["stateDiagram-v2".to_owned()];
    let named = states.iter().filter(|state| label(state) != id(state));
    lines.extend(named.map(|state| format!("    state \"{}\" as {}", label(state), id(state))));
    lines.push(format!("    [*] --> {}", id(&initial)));
    for (from, to, events) in &edges {
        let to = match to {
            Step::Goes(to) => id(to),
            Step::Violates => "Violation".to_owned(),
            Step::Stays => continue,
        };
        let events: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
        lines.push(format!("    {} --> {to}: {}", id(from), events.join(", ")));
    }
    let finals = states.iter().filter(|state| !has_exit(state));
    lines.extend(finals.map(|state| format!("    {} --> [*]", id(state))));
    lines.join("\n")
}

fn label(state: &impl Debug) -> String {
    format!("{state:?}")
}

/// As the notation takes it, without parentheses.
fn id(state: &impl Debug) -> String {
    label(state).replace('(', "_").replace(')', "")
}

/// The one step that `step` makes of every state of the rest of a substream.
fn independent<S: Debug + PartialEq>(mut steps: impl Iterator<Item = Step<S>>) -> Step<S> {
    let first = steps.next().expect("a state");
    assert!(steps.all(|step| step == first), "depends on another state");
    first
}

/// While the channel is open; what ends it belongs to the diagram of the channel.
fn write_step(write: WriteState, event: SubstreamEvent) -> Step<WriteState> {
    independent(READ_STATES.into_iter().map(|read| {
        let channel = ChannelState::Open;
        let state = State {
            write,
            read,
            channel,
        };
        match state.on(event) {
            (_, effects) if effects.contains(Effects::PROTOCOL_ERROR) => Step::Violates,
            (next, _) if next.channel != channel || next.write == write => Step::Stays,
            (next, _) => Step::Goes(next.write),
        }
    }))
}

fn read_step(read: ReadState, event: SubstreamEvent) -> Step<ReadState> {
    independent(WRITE_STATES.into_iter().map(|write| {
        let channel = ChannelState::Open;
        let state = State {
            write,
            read,
            channel,
        };
        match state.on(event) {
            (next, _) if next.channel != channel || next.read == read => Step::Stays,
            (next, _) => Step::Goes(next.read),
        }
    }))
}

/// In some state of the halves: `CutOffDrained` asks for one of the write half.
fn channel_step(channel: ChannelState, event: SubstreamEvent) -> Step<ChannelState> {
    let mut found = Step::Stays;
    for write in WRITE_STATES {
        for read in READ_STATES {
            let state = State {
                write,
                read,
                channel,
            };
            let next = state.on(event).0.channel;
            if next != channel {
                let step = Step::Goes(next);
                assert!([Step::Stays, step].contains(&found), "{state:?} {event:?}");
                found = step;
            }
        }
    }
    found
}

#[test]
fn the_diagrams_of_the_page_are_those_of_the_transitions() {
    let diagrams = [
        (
            "write",
            diagram(WriteState::Open, &WRITE_STATES, write_step),
        ),
        ("read", diagram(ReadState::Open, &READ_STATES, read_step)),
        (
            "channel",
            diagram(ChannelState::Open, &CHANNEL_STATES, channel_step),
        ),
    ];
    let page = fs::read_to_string(PAGE).expect("the page");
    let mut expected = page.clone();
    for (name, diagram) in diagrams {
        let marker = format!("<!-- states: {name} -->\n");
        let begin = expected.find(&marker).expect(&marker) + marker.len();
        let end = begin + expected[begin..].find(END).expect(END);
        let block = format!("```mermaid\n{diagram}\n```\n");
        expected.replace_range(begin..end, &block);
    }
    if page == expected {
        return;
    }
    if std::env::var_os(BLESS).is_some() {
        fs::write(PAGE, expected).expect("the page is written");
        return;
    }
    panic!("{BLESS}=1 rewrites ARCHITECTURE.md, which should be:\n{expected}");
}
