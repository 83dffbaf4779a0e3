//! curl: a client that nobody here wrote.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One call of curl, being put together.
#[derive(Debug, Clone)]
pub struct Curl {
    url: String,
    arguments: Vec<String>,
    body_to: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct CurlAnswer {
    /// curl's exit code; 0 where an answer was received whole, 60 where the certificate is not trusted.
    pub exit: i32,
    /// The status; 0 without an answer.
    pub status: u16,
    /// `1.1`, `2`, …
    pub version: String,
    /// The last answer's fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The heads that came before its own, such as those of 103, as they were.
    pub interim: Vec<String>,
    /// The body, unless it went to a file.
    pub body: Vec<u8>,
    /// What curl says went wrong.
    pub stderr: String,
}

impl CurlAnswer {
    /// The first field of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

impl Curl {
    /// A GET of that URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), arguments: Vec::new(), body_to: None }
    }

    /// Adds arguments as they are.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Trusts the certificates in that file.
    #[must_use]
    pub fn cacert(self, file: &Path) -> Self {
        self.arguments(["--cacert".to_owned(), file.display().to_string()])
    }

    /// Takes an address for a name.
    #[must_use]
    pub fn resolve(self, name: &str, address: SocketAddr) -> Self {
        let ip = match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        self.arguments(["--resolve".to_owned(), format!("{name}:{}:{ip}", address.port())])
    }

    /// HTTP/1.1.
    #[must_use]
    pub fn http1(self) -> Self {
        self.arguments(["--http1.1"])
    }

    /// HTTP/2.
    #[must_use]
    pub fn http2(self) -> Self {
        self.arguments(["--http2"])
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(self, line: &str) -> Self {
        self.arguments(["--header", line])
    }

    /// POSTs a file as it is, streaming it.
    #[must_use]
    pub fn post_file(self, file: &Path) -> Self {
        self.arguments(["--request", "POST", "--header", "Expect:", "--upload-file"])
            .arguments([file.display().to_string()])
    }

    /// Another method, without a body.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        self.arguments(["--request", method])
    }

    /// Writes the body to a file.
    #[must_use]
    pub fn body_to(mut self, file: &Path) -> Self {
        self.body_to = Some(file.to_owned());
        self
    }

    /// Runs it, for at most two minutes.
    ///
    /// # Panics
    /// When curl can't be started.
    #[must_use]
    pub fn run(self) -> CurlAnswer {
        let folder = tempfile::tempdir().unwrap();
        let heads = folder.path().join("heads");
        let body = self.body_to.clone().unwrap_or_else(|| folder.path().join("body"));
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "120", "--noproxy", "*", "--write-out"])
            .arg("%{http_code} %{http_version}")
            .arg("--dump-header")
            .arg(&heads)
            .arg("--output")
            .arg(&body)
            .args(&self.arguments)
            .arg(&self.url)
            .output()
            .expect("curl is installed");
        let heads = std::fs::read_to_string(heads).unwrap_or_default().replace('\r', "");
        let written = String::from_utf8_lossy(&output.stdout).into_owned();
        let (status, version) = written.split_once(' ').unwrap_or_default();
        CurlAnswer {
            exit: output.status.code().unwrap_or(-1),
            status: status.parse().unwrap_or(0),
            version: version.to_owned(),
            headers: last_head(&heads),
            interim: interim_heads(&heads),
            body: if self.body_to.is_some() { Vec::new() } else { std::fs::read(body).unwrap_or_default() },
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Interim answers come before the last one, each with a blank line after it.
fn last_head(heads: &str) -> Vec<(String, String)> {
    let last = heads.trim_end().rsplit("\n\n").next().unwrap_or_default();
    let fields = last.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
}

/// The heads before the last one, as they were.
fn interim_heads(heads: &str) -> Vec<String> {
    let mut heads: Vec<String> = heads.trim_end().split("\n\n").map(str::to_owned).collect();
    heads.pop();
    heads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    #[test]
    fn an_answer_is_read_whole() {
        let origin = Origin::start();
        let answer = Curl::new(format!("http://{}/a?b", origin.address())).header("x-mine: 7").run();
        assert_eq!((answer.exit, answer.status, answer.version.as_str()), (0, 200, "1.1"));
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        let seen = origin.seen();
        assert_eq!((seen.len(), seen[0].target.as_str()), (1, "/a?b"));
        assert_eq!(seen[0].header("x-mine"), Some("7"));
    }

    #[test]
    fn the_last_of_several_heads_counts() {
        let heads = "HTTP/1.1 103 Early Hints\nX: y\n\nHTTP/1.1 200 OK\nA: b\n\n";
        assert_eq!(last_head(heads), [("a".to_owned(), "b".to_owned())]);
        assert_eq!(interim_heads(heads), ["HTTP/1.1 103 Early Hints\nX: y"]);
    }
}
