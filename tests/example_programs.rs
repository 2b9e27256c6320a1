//! Examples as processes: a chat room, and calls to a server that is killed and started again.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use anabranch::Address;

#[path = "common/programs.rs"]
mod programs;
use programs::example;

/// Killed when the test fails.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn new(name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(example(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let line = self.lines.next().expect("it goes on");
        line.expect("its output")
    }

    fn address(&mut self) -> Address {
        self.line().parse().expect("an address")
    }

    fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        writeln!(input, "{line}").expect("it reads");
    }

    /// Waits for its end; what it has said on standard error.
    fn end(&mut self) -> (bool, String) {
        drop(self.child.stdin.take());
        let mut error = String::new();
        let mut pipe = self.child.stderr.take().expect("a pipe");
        pipe.read_to_string(&mut error).expect("its errors");
        (self.child.wait().expect("it ends").success(), error)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that is removed on drop.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new() -> Self {
        let name = format!("anabranch-examples-{:016x}.key", rand::random::<u64>());
        Self(std::env::temp_dir().join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("it is UTF-8")
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn members_of_a_chat_room_hear_each_other_until_they_leave() {
    let key = KeyFile::new();
    let mut server = Process::new("chat", &["serve", "127.0.0.1:0", key.path()]);
    let address = server.address().to_string();
    let mut alice = Process::new("chat", &["join", &address, "alice"]);
    assert_eq!(alice.line(), "* alice joins");
    let mut bob = Process::new("chat", &["join", &address, "bob"]);
    assert_eq!(bob.line(), "* bob joins");
    assert_eq!(alice.line(), "* bob joins");
    bob.say("hello \u{1b}[31malice");
    for member in [&mut alice, &mut bob] {
        assert_eq!(member.line(), "bob: hello [31malice");
    }
    alice.say("good bye");
    let (succeeded, error) = alice.end();
    assert!(succeeded, "{error}");
    // Also what was said last has arrived.
    assert_eq!(bob.line(), "alice: good bye");
    assert_eq!(bob.line(), "* alice leaves");
    let (succeeded, error) = bob.end();
    assert!(succeeded, "{error}");

    let mut nameless = Process::new("chat", &["join", &address, "a\nb"]);
    let (succeeded, error) = nameless.end();
    assert!(
        !succeeded && error.contains("ResetByPeer(Some(1))"),
        "{error}"
    );
}

#[test]
fn calls_survive_a_server_that_is_killed_and_comes_back() {
    let key = KeyFile::new();
    let mut server = Process::new("client_pool", &["serve", "127.0.0.1:0", key.path()]);
    let address = server.address();
    let mut client = Process::new("client_pool", &["call", &address.to_string(), "40"]);
    for number in 0..10 {
        assert_eq!(client.line(), format!("CALL {number}"));
    }
    drop(server);
    let socket = address.socket_addr().to_string();
    let mut server = Process::new("client_pool", &["serve", &socket, key.path()]);
    assert_eq!(server.address(), address, "the same after each start");
    for number in 10..40 {
        assert_eq!(client.line(), format!("CALL {number}"));
    }
    assert_eq!(client.line(), "40 calls, 2 connections");
    let (succeeded, error) = client.end();
    assert!(succeeded, "{error}");
}
