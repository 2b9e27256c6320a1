//! Checks the blocks that `scripts/figures.sh` writes, the plots, and the claims of `README.md`
//! about throughput and paths.

use std::collections::BTreeMap;

use super::{files, read};

const PAGE: &str = "docs/benchmarks.md";
const END: &str = "<!-- end of figures -->";

/// Each plot, and the block that it shows.
const PICTURES: [(&str, &str); 3] = [
    ("docs/figures/goodput.svg", "paths"),
    ("docs/figures/memory.svg", "peers"),
    ("docs/figures/throughput.svg", "peers"),
];

/// The blocks between the markers of a page, by name.
fn blocks(page: &str) -> BTreeMap<String, String> {
    let text = read(page);
    let parts = text.split("<!-- figures: ").skip(1);
    let blocks = parts.map(|part| {
        let (name, rest) = part.split_once(" -->").expect("the end of a marker");
        let (block, _) = rest.split_once(END).expect("the end of a block");
        (name.to_owned(), block.to_owned())
    });
    blocks.collect()
}

fn block(name: &str) -> String {
    blocks(PAGE)
        .remove(name)
        .unwrap_or_else(|| panic!("{PAGE} has no figures of {name}"))
}

/// The first line of a block, parsed.
struct Head {
    date: String,
    commit: String,
    is_quick: bool,
}

impl Head {
    /// `None` unless date, commit, rounds, machine and command are all present.
    fn of(name: &str, block: &str) -> Option<Self> {
        let line = block.trim_start().lines().next()?;
        let (date, rest) = line.split_once(", commit ")?;
        let (year, day) = date.split_once('-')?;
        let is_date = year.len() == 4
            && day.len() == 5
            && date.chars().all(|c| c.is_ascii_digit() || c == '-');
        let (commit, rest) = rest.split_once(", ")?;
        let hash = commit.strip_suffix(" with changes").unwrap_or(commit);
        let is_hash = hash.len() >= 7 && hash.chars().all(|c| c.is_ascii_hexdigit());
        let is_quick = rest.starts_with("**quick run**, ");
        let rest = rest.trim_start_matches("**quick run**, ");
        let (rounds, rest) = rest.split_once(" round")?;
        let (machine, command) = rest.split_once("Made by `scripts/figures.sh ")?;
        let of_machine = [" cores (", "), Linux ", ", Rust ", " % busy before. "];
        let is_machine = of_machine.iter().all(|part| machine.contains(part));
        let quick = if is_quick { "--quick " } else { "" };
        let is_command = command == format!("{quick}{name}`, which ran:");
        let is_whole = is_date && is_hash && rounds.parse::<u32>().is_ok_and(|rounds| rounds > 0);
        (is_whole && is_machine && is_command).then(|| Self {
            date: date.to_owned(),
            commit: commit.to_owned(),
            is_quick,
        })
    }

    /// The form that the plots use.
    fn short(&self) -> String {
        let quick = if self.is_quick { ", quick run" } else { "" };
        format!("{}, commit {}{quick}", self.date, self.commit)
    }
}

fn head(name: &str) -> Head {
    Head::of(name, &block(name)).unwrap_or_else(|| panic!("the head of the figures of {name}"))
}

/// The cells of each row of each table.
fn rows(block: &str) -> Vec<Vec<&str>> {
    let rows = block.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The median at the beginning of a cell, verbatim; `None` if all rounds failed.
fn shown(cell: &str) -> Option<&str> {
    let first = cell.split([' ', ',']).next().unwrap_or_default();
    first.parse::<f64>().is_ok().then_some(first)
}

fn median(cell: &str) -> f64 {
    let shown = shown(cell).and_then(|number| number.parse().ok());
    shown.unwrap_or_else(|| panic!("no number in {cell:?}"))
}

#[test]
fn each_block_of_figures_says_when_of_what_and_by_what_it_was_made() {
    let script = read("scripts/figures.sh");
    let sections = script.lines().find_map(|line| line.strip_prefix("all=("));
    let sections = sections.expect("the sections").trim_end_matches(')');
    let mut names: Vec<_> = sections.split(' ').chain(["summary"]).collect();
    names.sort_unstable();
    let blocks = blocks(PAGE);
    assert_eq!(blocks.keys().collect::<Vec<_>>(), names);
    for (name, block) in &blocks {
        if name == "summary" {
            continue;
        }
        assert!(Head::of(name, block).is_some(), "the head of {name}");
        let code: Vec<_> = block.split("```").collect();
        assert_eq!(code.len(), 3, "the commands of {name}");
        let commands = code[1].strip_prefix("text\n").unwrap_or_default();
        assert!(!commands.trim().is_empty(), "{name} was made by nothing");
        let has_number = |cell: &&str| cell.starts_with(|c: char| c.is_ascii_digit());
        let tables = rows(code[2]);
        let figures = tables.iter().flat_map(|row| row.iter().skip(1));
        assert!(
            figures.filter(|cell| has_number(cell)).count() > 0,
            "{name} shows nothing"
        );
    }
}

#[test]
fn the_page_says_whether_its_figures_are_of_one_version() {
    let mut versions: BTreeMap<(String, bool), Vec<String>> = BTreeMap::new();
    for name in blocks(PAGE).into_keys().filter(|name| name != "summary") {
        let head = head(&name);
        let version = (head.commit, head.is_quick);
        versions.entry(version).or_default().push(name);
    }
    let summary = block("summary");
    let several = versions.len() > 1;
    let begin = if several {
        let count = versions.len();
        format!("The figures of this page are of {count} versions of the code: ")
    } else {
        "All figures of this page are of ".to_owned()
    };
    let parts = summary.trim().strip_prefix(&begin).expect(&begin);
    let mut said: Vec<_> = parts.trim_end_matches('.').split("; ").collect();
    said.sort_unstable();
    let of_version = |((commit, is_quick), names): ((String, bool), Vec<String>)| {
        let quick = if is_quick { ", a quick run" } else { "" };
        let names = if several {
            format!(": {}", names.join(", "))
        } else {
            String::new()
        };
        format!("commit {commit}{quick}{names}")
    };
    let mut expected: Vec<_> = versions.into_iter().map(of_version).collect();
    expected.sort_unstable();
    assert_eq!(said, expected);
}

#[test]
fn pictures_show_the_block_that_they_stand_beside() {
    let found = files();
    let mut found: Vec<_> = found
        .iter()
        .filter(|file| file.starts_with("docs/figures/"))
        .collect();
    found.sort_unstable();
    assert_eq!(found, PICTURES.map(|(picture, _)| picture));
    let page = read(PAGE);
    for (picture, block) in PICTURES {
        let name = picture.trim_start_matches("docs/");
        assert!(page.contains(&format!("]({name})")), "{PAGE}: {picture}");
        let svg = read(picture);
        let is_whole = svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>");
        assert!(is_whole, "{picture} is cut");
        // Otherwise black on black in a dark theme.
        assert!(svg.contains("fill=\"#ffffff\""), "{picture}: no background");
        let made = head(block).short();
        assert!(svg.contains(&made), "{picture} is not of {made}");
    }
    let goodput = read("docs/figures/goodput.svg");
    assert!(
        goodput.contains("Virtual time: "),
        "a real network, it seems"
    );
    let throughput = read("docs/figures/throughput.svg");
    let peers = block("peers");
    let columns = columns(&peers);
    for (row, title) in BULK.iter().flat_map(|row| SHOWN.map(|title| (row, title))) {
        let cell = bulk_row(&peers, row)[column(&columns, title)];
        if let Some(number) = shown(cell) {
            let label = format!(">{number}<");
            assert!(throughput.contains(&label), "{row} of {title} is {cell}");
        }
    }
}

const BULK: [&str; 4] = [
    "1 substream up, MB/s",
    "1 substream down, MB/s",
    "10 substreams up, MB/s",
    "10 substreams down, MB/s",
];

const SHOWN: [&str; 3] = ["anabranch", "libp2p-quic", "libp2p-webrtc"];

fn columns(peers: &str) -> Vec<&str> {
    rows(peers).remove(0)
}

fn column(columns: &[&str], title: &str) -> usize {
    let is_it = |column: &&str| column.starts_with(title);
    columns.iter().position(is_it).expect(title)
}

fn bulk_row<'a>(peers: &'a str, row: &str) -> Vec<&'a str> {
    let mut rows = rows(peers).into_iter();
    rows.find(|cells| cells.first() == Some(&row)).expect(row)
}

/// The minimum and the maximum of the medians in a column of the bulk transfers.
fn range(peers: &str, title: &str) -> (f64, f64) {
    let at = column(&columns(peers), title);
    let cells = BULK.map(|row| bulk_row(peers, row)[at]);
    let medians = cells.iter().filter_map(|cell| shown(cell)).map(median);
    let least = medians.clone().fold(f64::INFINITY, f64::min);
    (least, medians.fold(0.0, f64::max))
}

#[test]
fn the_readme_says_of_throughput_and_paths_what_the_tables_say() {
    let (peers, paths) = (block("peers"), block("paths"));
    let (least, most) = range(&peers, "anabranch");
    let (webrtc, webrtc_most) = range(&peers, ": libp2p-webrtc");
    let (quic, quic_most) = range(&peers, ": libp2p-quic");
    let machine = peers.split_once(" cores (").expect("a machine").0;
    let cores = machine.rsplit(' ').next().expect("a number");
    let rows = rows(&paths);
    let gigabit = rows.iter().find(|row| {
        row.first() == Some(&"1 Gbit/s") && row.get(2..4) == Some(&["50 ms", "direct"])
    });
    let gigabit = median(gigabit.expect("1 Gbit/s at 50 ms")[4]);
    let head_row = rows.iter().find(|row| row.first() == Some(&"loss"));
    let at = column(head_row.expect("a table by loss"), "50 ms");
    let lossy = rows
        .iter()
        .find(|row| row.get(..2) == Some(&["1 %", "direct"]));
    let lossy = median(lossy.expect("1 % of loss")[at]);
    let is_quick = head("peers").is_quick || head("paths").is_quick;
    let claims = format!(
        "{least:.0} to {most:.0} MB/s between two processes on {cores} cores, {webrtc:.0} to \
         {webrtc_most:.0} times libp2p-webrtc and {quic:.1} to {quic_most:.1} times libp2p-quic in \
         the same run; on a simulated path, in virtual time, {gigabit:.0} % of 1 Gbit/s at 50 ms, \
         and {lossy:.0} % of 100 Mbit/s there with 1 % of loss{}",
        if is_quick { " (quick runs)" } else { "" }
    );
    let readme_s = blocks("README.md").remove("claims").expect("claims");
    let words: Vec<_> = readme_s.split_whitespace().collect();
    assert_eq!(words.join(" "), claims);
    // No figures elsewhere on the page, where nothing would check them.
    let mut readme = read("README.md");
    let begin = readme.find("<!-- figures: claims").expect("a begin");
    let end = begin + readme[begin..].find(END).expect("an end");
    readme.replace_range(begin..end, "");
    for unit in [" MB/s", "bit/s", " times libp2p"] {
        assert!(!readme.contains(unit), "a figure of its own:{unit}");
    }
}
