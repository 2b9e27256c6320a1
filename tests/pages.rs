//! Checks the Markdown pages against the code: paths, links, names of tests, numbers, the tables of
//! `docs/interop.md`, and what `scripts/figures.sh` writes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch::Config;

#[path = "pages/figures.rs"]
mod figures;
#[path = "pages/layout.rs"]
mod layout;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Directories that are built or installed, and corpora.
const NOT_OURS: [&str; 6] = [
    "target",
    "node_modules",
    ".venv",
    ".git",
    "__pycache__",
    "corpus",
];

/// All files, relative to the root, with `/` as separator.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from(ROOT)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if NOT_OURS.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                let relative = path.strip_prefix(ROOT).expect("below the root");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn pages() -> Vec<String> {
    files().into_iter().filter(|f| f.ends_with(".md")).collect()
}

/// The text of a page without its code blocks.
fn prose(page: &str) -> String {
    let text = read(page);
    let parts = text.split("```").step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// Every code span, with the line that contains it.
fn code_spans(text: &str) -> Vec<(&str, &str)> {
    let of_line = |line| {
        let spans = str::split(line, '`').skip(1).step_by(2);
        spans.map(move |span| (span, line))
    };
    text.lines().flat_map(of_line).collect()
}

#[test]
fn what_pages_link_to_exists() {
    let mut missing = Vec::new();
    for page in pages() {
        let directory = Path::new(&page).parent().expect("a directory");
        let text = prose(&page);
        for (_, rest) in text
            .match_indices("](")
            .map(|(at, _)| text.split_at(at + 2))
        {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !Path::new(ROOT).join(directory).join(target).exists() {
                missing.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Extensions by which a span counts as the name of a file.
const ENDINGS: [&str; 11] = [
    ".rs", ".sh", ".md", ".py", ".mjs", ".go", ".toml", ".txt", ".proto", ".json", ".svg",
];

/// Files that a program writes at run time, and one of a foreign project.
const MADE: [&str; 3] = ["received", "me.key", "_udp_mux.py"];

#[test]
fn files_that_pages_name_exist() {
    let files = files();
    let mut missing = Vec::new();
    for page in pages() {
        for (span, _) in code_spans(&prose(&page)) {
            // The first word, without the name of an item inside the file.
            let word = span.split([' ', ',']).next().unwrap_or_default();
            let name = word.split("::").next().unwrap_or_default();
            let name = name.trim_start_matches("./").trim_end_matches('/');
            let name = name.replace("H/", "tests/hostile/");
            let name = name.strip_prefix("../").unwrap_or(&name);
            let is_file = ENDINGS.iter().any(|ending| name.ends_with(ending));
            let has_root = [
                "src/",
                "crates/",
                "tests/",
                "docs/",
                "scripts/",
                "examples/",
                "interop/",
                "fuzz/",
            ]
            .iter()
            .any(|root| name.starts_with(root));
            let is_pattern = name.contains(['*', '<', '$', '(', '[', '|']);
            // An extension alone names a kind of file.
            if !(is_file || has_root) || is_pattern || MADE.contains(&name) || name.starts_with('.')
            {
                continue;
            }
            let exists = files.iter().any(|file| {
                file == name
                    || file.ends_with(&format!("/{name}"))
                    || file.contains(&format!("{name}/"))
                    // A module of several files, or a cargo target.
                    || file.starts_with(&format!("{name}."))
            });
            if !exists && !name.contains("/target") && !name.contains("/artifacts") {
                missing.push(format!("{page}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A function in the sources, with the components of its path.
struct Function {
    name: String,
    path: Vec<String>,
}

fn functions() -> Vec<Function> {
    let mut functions = Vec::new();
    for file in files() {
        let is_source = ["src/", "tests/", "crates/"]
            .iter()
            .any(|root| file.starts_with(root));
        if !is_source || !file.ends_with(".rs") || file == "tests/pages.rs" {
            continue;
        }
        let text = read(&file);
        let mut path: Vec<_> = file
            .split('/')
            .map(|part| part.replace(".rs", ""))
            .collect();
        if text.contains("mod tests {") {
            path.push("tests".to_owned());
        }
        for line in text.lines() {
            let Some((_, rest)) = line.split_once("fn ") else {
                continue;
            };
            let name: String = rest.chars().take_while(|c| is_part_of_name(*c)).collect();
            let path = path.clone();
            functions.push(Function { name, path });
        }
    }
    functions
}

fn is_part_of_name(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_'
}

/// Whether a name matches a pattern, in which `*` and `...` match anything.
fn is_meant(name: &str, pattern: &str) -> bool {
    let pattern = pattern.replace("...", "*");
    let mut parts = pattern.split('*');
    let Some(rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut rest = rest;
    let mut last = None;
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else {
            return false;
        };
        (rest, last) = (behind, Some(part));
    }
    match last {
        None => rest.is_empty(),
        // The last part may occur more than once, and has to end the name.
        Some(part) => part.is_empty() || name.ends_with(part),
    }
}

/// Parses a span that can only be the path of a function: `module::name`, in lower case.
fn as_function(span: &str) -> Option<(Vec<String>, &str)> {
    let span = span.replace("H/", "tests/hostile/");
    let span: &str = span.leak();
    let (path, name) = span.rsplit_once("::")?;
    let pattern = |c: char| is_part_of_name(c) || c == '*' || c == '.';
    let is_name = name.chars().all(pattern) && (name.contains('_') || name.contains('*'));
    let is_path = path
        .chars()
        .all(|c| is_part_of_name(c) || "/:.".contains(c));
    let parts = path.split(['/', ':']).filter(|part| !part.is_empty());
    let path = parts.map(|part| part.replace(".rs", "")).collect();
    (is_name && is_path && name != "*").then_some((path, name))
}

#[test]
fn tests_that_pages_name_exist() {
    let functions = functions();
    let mut missing = Vec::new();
    for page in pages() {
        for (span, _) in code_spans(&prose(&page)) {
            let Some((path, name)) = as_function(span) else {
                continue;
            };
            let exists = functions.iter().any(|function| {
                let has_part = |part: &String| function.path.contains(part) || part == "anabranch";
                is_meant(&function.name, name) && path.iter().all(has_part)
            });
            if !exists {
                missing.push(format!("{page}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The rows of the requirements in `tests/README.md`: their ids, and the cell with their tests.
fn rows() -> Vec<(String, String)> {
    let text = read("tests/README.md");
    let cells = text.lines().filter_map(|line| {
        let (ids, tests) = line.strip_prefix("| ")?.split_once(" | ")?;
        let is_id = |id: &str| {
            let Some((letters, number)) = id.split_once('-') else {
                return false;
            };
            let is_number = number
                .trim_start_matches('R')
                .chars()
                .all(|c| c.is_ascii_digit());
            letters.chars().all(|c| c.is_ascii_uppercase()) && is_number
        };
        let is_row = ids.split(", ").all(is_id);
        is_row.then(|| {
            (
                ids.to_owned(),
                tests.trim_end_matches('|').trim().to_owned(),
            )
        })
    });
    cells.collect()
}

/// Each row names a test that exists, or states why it has none.
#[test]
fn rows_of_the_requirements_have_tests_or_a_reason() {
    const REASONS: [&str; 7] = [
        "a type",
        "a convention",
        "no `cfg(test)` constant",
        "none",
        "not ours",
        "the conformance suite",
        "`Carrier::poll_event` loops",
    ];
    let functions = functions();
    let files = files();
    let ids: BTreeSet<String> = rows()
        .iter()
        .flat_map(|(ids, _)| ids.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(ids.len() > 120, "{} rows", ids.len());
    let is_test = |span: &str| {
        let (path, name) = as_function(span).unwrap_or((Vec::new(), span));
        let pattern = |c: char| is_part_of_name(c) || c == '*';
        if !name.chars().all(pattern) || !name.contains(['_', '*']) {
            return None;
        }
        let in_place = functions.iter().any(|function| {
            let has_part = |part: &String| function.path.contains(part);
            is_meant(&function.name, name) && path.iter().all(has_part)
        });
        // A macro generates the cases of the conformance suite, and a file stands for all of its
        // tests.
        let is_case = || {
            let mut cases = files
                .iter()
                .filter(|f| f.starts_with("crates/testkit/src/conformance/"));
            cases.any(|file| read(file).contains(&format!("{name}, ")))
        };
        let is_file = || files.iter().any(|f| f.ends_with(&format!("/{name}.rs")));
        Some(in_place || (path.is_empty() && (is_case() || is_file())))
    };
    let mut wrong = Vec::new();
    for (row, tests) in rows() {
        let spans = code_spans(&tests);
        let found: Vec<_> = spans
            .iter()
            .map(|(span, _)| (span, is_test(span)))
            .collect();
        for (span, found) in &found {
            if *found == Some(false) {
                wrong.push(format!("{row}: {span} is no test"));
            }
        }
        let has_test = found.iter().any(|(_, found)| *found == Some(true));
        let refers = tests
            .split([' ', ',', ';', ':'])
            .any(|word| ids.contains(word));
        if !has_test && !refers && !REASONS.iter().any(|reason| tests.starts_with(reason)) {
            wrong.push(format!("{row}: {tests}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Long names without a path: tests, fields, functions or cases of foreign peers.
#[test]
fn names_that_pages_use_are_used_in_the_code() {
    let mut words = BTreeSet::new();
    for file in files() {
        let is_code = [".rs", ".mjs", ".py", ".go", ".toml", ".sh", ".proto"]
            .iter()
            .any(|ending| file.ends_with(ending));
        if is_code && file != "tests/pages.rs" {
            let text = read(&file);
            let word = |c: char| !(is_part_of_name(c) || c.is_ascii_uppercase());
            words.extend(text.split(word).map(str::to_owned));
        }
    }
    let is_known = |name: &str| match name.contains(['*', '.']) {
        false => words.contains(name),
        true => words.iter().any(|word| is_meant(word, name)),
    };
    // The one has names from before a renaming, the other names of foreign projects.
    let others = ["CHANGELOG.md", "interop/python/README.md"];
    let mut missing = Vec::new();
    for page in pages().iter().filter(|page| !others.contains(&&***page)) {
        for (span, _) in code_spans(&prose(page)) {
            let pattern = |c: char| is_part_of_name(c) || c == '*' || c == '.';
            let is_file = ENDINGS.iter().any(|ending| span.ends_with(ending));
            let is_long = span.matches('_').count() >= 2 && span.chars().all(pattern);
            if is_long && !is_file && !is_known(span) {
                missing.push(format!("{page}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Asserts that a page contains this text, which is true only while `holds`.
fn says(page: &str, text: &str, holds: bool) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words(&read(page)).contains(&words(text)),
        "{page} does not say: {text}"
    );
    assert!(holds, "{page} says what is not true: {text}");
}

/// Whether a source file has this line.
fn has_line(file: &str, line: &str) -> bool {
    read(file).lines().any(|other| other.trim() == line)
}

#[test]
fn numbers_of_the_pages_are_those_of_the_code() {
    let config = Config::default();
    let mib = 1 << 20;
    let readme = "README.md";
    says(
        readme,
        "are reset** at 4 MiB unread",
        config.substream_ceiling == 4 * mib,
    );
    let windows = (config.receive_window, config.max_receive_window);
    says(
        "CHANGELOG.md",
        "(1 to 16 MiB)",
        windows == (mib as u32, 16 * mib as u32),
    );
    let manifest = "Cargo.toml";
    says(
        readme,
        "1.89 or later",
        has_line(manifest, "rust-version = \"1.89\""),
    );
    let work = "src/connection/work.rs";
    let architecture = "ARCHITECTURE.md";
    let turns = has_line(work, "pub(super) const STEPS_PER_TURN: u32 = 32;");
    says(architecture, "reads channels in turns of 32 frames", turns);
    let units = has_line(work, "const UNITS_PER_POLL: u32 = 512;");
    says(architecture, "ends after 512 units of work", units);
    let engine = "crates/rtc/src/direct/association.rs";
    let waiting = has_line(engine, "const MIN_WAITING: usize = 32 * 1024;");
    says(
        architecture,
        "what the congestion window takes and 32 KiB",
        waiting,
    );
    let interop = "docs/interop.md";
    let credit = config.max_frame_without_credit == 4096;
    says(
        interop,
        "messages of at most 4 096 bytes to peers that have not shown credit",
        credit,
    );
    let ceiling = config.substream_ceiling == 4 * mib;
    says(
        interop,
        "fills `Config::substream_ceiling` (4 MiB)",
        ceiling,
    );
}

/// Packages that the library is built from, along these edges of the dependency graph.
fn packages(edges: &str, options: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .current_dir(ROOT)
        .args(["tree", "--locked", "--package", "anabranch"])
        .args(["--edges", edges, "--prefix", "none"])
        .args(options)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("text");
    let names = text.lines().filter_map(|line| line.split(" (").next());
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// `crates/str0m` is for tests only.
#[test]
fn no_set_of_features_brings_str0m() {
    for features in [&[][..], &["--no-default-features"], &["--all-features"]] {
        let brought = packages("normal,build", features);
        let has = |name: &str| brought.iter().any(|package| package.starts_with(name));
        let is_core = features == ["--no-default-features"];
        // Nor sockets, DTLS, ICE or Noise where no carrier of ours is asked for.
        for name in [
            "anabranch-rtc ",
            "dimpl ",
            "is ",
            "quinn-udp ",
            "snow ",
            "aws-lc-rs ",
        ] {
            assert_eq!(has(name), !is_core, "{name}: {brought:?}");
        }
        assert!(!has("str0m ") && !has("anabranch-str0m "), "{features:?}");
    }
}

#[test]
fn the_packages_of_each_set_of_features_are_counted() {
    let count = |features: &str| {
        let options = ["--no-default-features", "--features", features];
        // Without the package itself.
        packages("normal", &options).len() - 1
    };
    for features in ["", "webrtc", "websocket", "webrtc,websocket"] {
        let name = match features {
            "" => "none",
            "webrtc,websocket" => "both, the default",
            one => one,
        };
        says(
            "README.md",
            &format!("| {name} | {} |", count(features)),
            true,
        );
    }
}

const COLUMNS: [&str; 7] = [
    "who dials and opens",
    "over",
    "cases",
    "default settings",
    "otherwise",
    "engines",
    "tests",
];

/// Whether `case` is a string of the sources, in which `{...}` matches anything. It needs at
/// least four letters: "{}" would match everything.
fn is_case(case: &str, sources: &str) -> bool {
    let mut texts = sources.split('"');
    texts.any(|text| {
        let pieces = text
            .split(['{', '}'])
            .step_by(2)
            .collect::<Vec<_>>()
            .join("*");
        let letters = pieces.chars().filter(char::is_ascii_alphabetic).count();
        text == case || (letters >= 4 && is_meant(case, &pieces))
    })
}

#[test]
fn the_tables_of_foreign_peers_name_only_tests_and_cases_that_exist() {
    let text = read("docs/interop.md");
    let (_, rest) = text
        .split_once("<!-- written by scripts/interop.py -->")
        .expect("a begin");
    let (tables, _) = rest.split_once("<!-- end -->").expect("an end");
    let functions = functions();
    let sources: String = files()
        .iter()
        .filter(|file| file.starts_with("tests/interop_"))
        .map(|file| read(file).replace("\\\"", "'"))
        .collect();
    let mut rows = 0;
    let mut is_peer = false;
    for line in tables.lines() {
        is_peer |= line.starts_with("### ");
        if !is_peer || !line.starts_with("| ") {
            continue;
        }
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), COLUMNS.len(), "{line}");
        if cells == COLUMNS {
            continue;
        }
        rows += 1;
        let [_, _, cases, default, otherwise, engines, tests] = cells[..] else {
            unreachable!("counted above")
        };
        assert_eq!(
            default,
            if otherwise.is_empty() { "yes" } else { "no" },
            "{line}"
        );
        assert!(["direct", "direct, str0m"].contains(&engines), "{line}");
        for test in tests.split(", ") {
            let (path, name) = as_function(test.trim_matches('`')).expect("the path of a test");
            let is_it = |f: &Function| f.name == name && path.iter().all(|p| f.path.contains(p));
            assert!(functions.iter().any(is_it), "{test}");
        }
        for case in cases.split("; ") {
            let case = case
                .split(" (")
                .next()
                .unwrap_or_default()
                .replace('"', "'");
            assert!(is_case(&case, &sources), "{case} in {line}");
        }
    }
    assert!(rows > 20, "{rows} rows");
}
