//! Imports go down: a module of `src` imports from those below it and no other (`ARCHITECTURE.md`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, lowest first. A room is a module of the crate's root.
const ROOMS: [&str; 20] = [
    "waiters",
    "identity",
    "rates",
    "interfaces",
    "certificate",
    "address",
    "ufrag",
    "message",
    "noise",
    "error",
    "events",
    "carrier",
    "substream",
    "connection",
    "delimited",
    "payload",
    "udp",
    "webrtc",
    "websocket",
    "endpoint",
];

/// Modules that only tests use, and that no room imports.
const RIGS: [&str; 1] = ["random"];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}

/// Whether the file is compiled for tests only.
fn is_rig(path: &str) -> bool {
    let is_model = path == "udp/admission/model.rs";
    is_model || path.contains("tests") || RIGS.iter().any(|rig| path.starts_with(rig))
}

/// The code of a file, without comments and the test modules at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// The rooms and rigs that code names by `crate::`.
fn named(code: &str) -> BTreeSet<String> {
    let behind = code.split("crate::").skip(1);
    let names = behind.flat_map(|rest| {
        let is_list = rest.starts_with('{');
        let end = if is_list {
            rest.find('}')
        } else {
            Some(rest.len())
        };
        let rest = &rest[usize::from(is_list)..end.unwrap_or(rest.len())];
        let word = |part: &str| {
            let letters = |c: &char| c.is_alphanumeric() || *c == '_';
            part.trim_start().chars().take_while(letters).collect()
        };
        match is_list {
            true => rest.split(',').map(word).collect::<Vec<String>>(),
            false => vec![word(rest)],
        }
    });
    let is_known = |name: &String| ROOMS.contains(&&**name) || RIGS.contains(&&**name);
    names.filter(is_known).collect()
}

#[test]
fn imports_go_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rank = |room: &str| ROOMS.iter().position(|known| *known == room);
    let (mut up, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for path in sources(&root) {
        let name = path
            .strip_prefix(&root)
            .expect("below it")
            .to_string_lossy();
        if is_rig(&name) || name == "lib.rs" {
            continue;
        }
        let room = name
            .split('/')
            .next()
            .expect("a name")
            .trim_end_matches(".rs")
            .to_owned();
        let from = rank(&room).unwrap_or_else(|| panic!("{room} has no place among the rooms"));
        seen.insert(room.clone());
        let text = fs::read_to_string(&path).expect("it is text");
        for to in named(&code(&text)) {
            if rank(&to).is_none_or(|to| to > from) {
                up.insert((room.clone(), to, name.to_string()));
            }
        }
    }
    let rooms: Vec<_> = ROOMS.iter().filter(|room| !seen.contains(**room)).collect();
    assert_eq!(rooms, Vec::<&&str>::new(), "rooms that are not there");
    let edges: BTreeSet<_> = up.iter().map(|(from, to, _)| (&**from, &**to)).collect();
    assert_eq!(edges, BTreeSet::new(), "{up:#?}");
}

/// Every import of a room by a room, without those that follow from others.
fn direct_imports(root: &Path) -> BTreeSet<(String, String)> {
    let mut edges = BTreeSet::new();
    for path in sources(root) {
        let name = path.strip_prefix(root).expect("below it").to_string_lossy();
        if is_rig(&name) || name == "lib.rs" {
            continue;
        }
        let room = name.split('/').next().expect("a name");
        let room = room.trim_end_matches(".rs");
        let text = fs::read_to_string(&path).expect("it is text");
        let others = named(&code(&text)).into_iter().filter(|to| to != room);
        edges.extend(others.map(|to| (room.to_owned(), to)));
    }
    let of = |room: &str| {
        let of_room = edges.iter().filter(move |(from, _)| from == room);
        of_room.map(|(_, to)| to.clone()).collect::<Vec<_>>()
    };
    // A room imports rooms below it only, so that this ends.
    let follows = |from: &str, to: &String| {
        let mut left: Vec<_> = of(from).into_iter().filter(|other| other != to).collect();
        while let Some(room) = left.pop() {
            let next = of(&room);
            if next.contains(to) {
                return true;
            }
            left.extend(next);
        }
        false
    };
    let direct = edges.iter().filter(|(from, to)| !follows(from, to));
    direct.cloned().collect()
}

#[test]
fn the_drawing_of_the_rooms_is_that_of_the_imports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("it is text");
    let drawing = page.split("```").nth(1).expect("a drawing");
    let is_room = |name: &str| ROOMS.contains(&name);
    let arrows = drawing
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .filter(|(from, to)| is_room(from) && is_room(to))
        .map(|(from, to)| (from.to_owned(), to.to_owned()));
    let drawn: BTreeSet<_> = arrows.collect();
    assert_eq!(drawn, direct_imports(&root.join("src")));
}
