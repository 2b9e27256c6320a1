//! The processes, their directories, and requests over HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::programs::example;

pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Waits for what another process does.
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < LIMIT, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes without a period.
pub(crate) fn content(size: usize) -> Vec<u8> {
    let mut state = size as u64 + 1;
    let mut content = Vec::with_capacity(size + 8);
    while content.len() < size {
        // A linear congruential generator: the content need not be unpredictable.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(size);
    content
}

/// A directory for one test, with the store of the server in it.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("file-service-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("fetched")).expect("it can be made");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.0.join(name);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Writes a file to be sent, and returns its path.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("it can be written");
        path
    }

    /// The content of a complete file of the server.
    pub(crate) fn stored(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join("store/files").join(name)).ok()
    }

    /// The lengths of the parts of the server.
    pub(crate) fn parts(&self) -> Vec<u64> {
        let parts = fs::read_dir(self.0.join("store/parts")).expect("a directory");
        parts
            .map(|part| part.and_then(|part| part.metadata()).map_or(0, |m| m.len()))
            .collect()
    }

    pub(crate) fn has_no_parts(&self) {
        assert_eq!(self.parts(), [0; 0]);
    }

    /// The length of the part of a file that is fetched.
    pub(crate) fn fetched_part(&self, name: &str) -> u64 {
        let part = self.0.join("fetched").join(format!(".{name}.part"));
        part.metadata().map_or(0, |metadata| metadata.len())
    }

    pub(crate) fn fetched(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join("fetched").join(name)).ok()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    WebRtc,
    WebSocket,
}

/// Killed when the test fails.
struct Process(Child);

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut program = Command::new(example("file_service"));
        program.args(arguments).stdout(Stdio::piped());
        Self(program.spawn().expect("it starts"))
    }

    fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().expect("a pipe"))
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &self.0.id().to_string()]);
        let sent = kill.status().expect("a command of every system");
        assert!(sent.success());
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of a process", || {
            status = self.0.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Server {
    process: Process,
    output: BufReader<ChildStdout>,
    http: String,
    addresses: [String; 2],
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn content_type(&self) -> &str {
        let mut headers = self.headers.lines();
        let found = headers.find_map(|line| line.strip_prefix("content-type: "));
        found.unwrap_or_default()
    }
}

impl Server {
    /// Serves the store in a directory.
    pub(crate) fn start(directory: &Directory, options: &[&str]) -> Self {
        let store = directory.path("store");
        let mut process = Process::start(&[&["serve"], options, &[&store]].concat());
        let mut output = process.output();
        let mut line = || {
            let mut line = String::new();
            output.read_line(&mut line).expect("text");
            line.trim_end().to_owned()
        };
        let page = line();
        let http = page.strip_prefix("page: http://").expect("its page");
        let http = http.trim_end_matches('/').to_owned();
        let addresses = [line(), line()];
        Self {
            process,
            output,
            http,
            addresses,
        }
    }

    pub(crate) fn address(&self, carrier: Carrier) -> &str {
        let [webrtc, websocket] = &self.addresses;
        match carrier {
            Carrier::WebRtc => webrtc,
            Carrier::WebSocket => websocket,
        }
    }

    /// Sends a request, and reads the answer, which closes the connection unless it upgrades it.
    pub(crate) fn request(&self, line: &str, headers: &[&str]) -> Answer {
        let mut stream = TcpStream::connect(&self.http).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut request = format!("{line}\r\nHost: {}\r\n", self.http);
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        if !headers
            .iter()
            .any(|header| header.starts_with("Connection"))
        {
            request.push_str("Connection: close\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = reader.read_line(&mut head).expect("an answer");
            assert_ne!(read, 0, "{head}");
        }
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {head}"));
        let mut body = String::new();
        if status != 101 {
            reader.read_to_string(&mut body).expect("text");
        }
        Answer {
            status,
            headers: head.replace('\r', "").to_ascii_lowercase(),
            body,
        }
    }

    pub(crate) fn listens(&self) -> bool {
        TcpStream::connect(&self.http).is_ok()
    }

    /// Waits until no transfer is under way.
    pub(crate) fn until_idle(&self) {
        until("the end of all transfers", || {
            let page = self.request("GET / HTTP/1.1", &[]);
            page.body.contains("<p>0 of ")
        });
    }

    pub(crate) fn kill(mut self) {
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("it has ended");
    }

    pub(crate) fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Lets it end in peace, and asserts that nothing was left to cut off.
    pub(crate) fn stop(self) {
        self.terminate();
        self.ended();
    }

    /// The same for one that has got its signal.
    pub(crate) fn ended(mut self) {
        let mut rest = String::new();
        let status = self.process.wait();
        self.output.read_to_string(&mut rest).expect("text");
        assert!(
            rest.ends_with("0 connections and 0 substreams were cut off\n"),
            "{rest}"
        );
        assert!(status.success(), "{status}");
    }
}

pub(crate) struct Client {
    process: Process,
    errors: BufReader<std::process::ChildStderr>,
}

/// What a client has said, and how it ended.
pub(crate) struct Ended {
    pub(crate) output: String,
    pub(crate) errors: String,
    pub(crate) code: Option<i32>,
}

impl Ended {
    pub(crate) fn succeeds(&self, output: &str) {
        assert_eq!(
            (&*self.output, self.code),
            (output, Some(0)),
            "{}",
            self.errors
        );
    }

    pub(crate) fn fails(&self, code: i32, reason: &str) {
        assert_eq!(self.code, Some(code), "{}", self.errors);
        assert!(self.errors.contains(reason), "{}", self.errors);
    }

    /// The bytes that a successful transfer has resumed from.
    pub(crate) fn resumed(&self, total: usize) -> u64 {
        let of = format!("{total} bytes, of which ");
        let resumed = self.output.strip_prefix(&*of);
        let resumed = resumed.and_then(|rest| rest.split(' ').next()?.parse().ok());
        resumed.unwrap_or_else(|| panic!("{} {}", self.output, self.errors))
    }
}

impl Client {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(example("file_service"));
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().expect("it starts"));
        let errors = BufReader::new(process.0.stderr.take().expect("a pipe"));
        Self { process, errors }
    }

    /// Waits until it reports that some of the file has moved, and not all of it.
    pub(crate) fn until_progress(&mut self) {
        loop {
            let mut line = String::new();
            let read = self.errors.read_line(&mut line).expect("text");
            assert_ne!(read, 0, "it ended without progress");
            let numbers = line.trim_end().strip_suffix(" bytes");
            let numbers = numbers.and_then(|line| line.split_once(" of "));
            let (moved, total) = numbers.unwrap_or_else(|| panic!("no progress: {line}"));
            let number = |text: &str| text.parse::<u64>().expect("a number");
            assert!(number(moved) < number(total), "{line}");
            if number(moved) > 0 {
                return;
            }
        }
    }

    pub(crate) fn interrupt(&self) {
        self.process.signal("INT");
    }

    pub(crate) fn kill(mut self) {
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("it has ended");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let (mut output, mut errors) = (String::new(), String::new());
        self.errors.read_to_string(&mut errors).expect("text");
        self.process
            .output()
            .read_to_string(&mut output)
            .expect("text");
        let code = self.process.wait().code();
        Ended {
            output,
            errors,
            code,
        }
    }
}

/// Whether nothing but the store is in a place that a name could lead to.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}
