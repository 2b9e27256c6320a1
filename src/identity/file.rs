//! An identity that is kept in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Identity, IdentityError};

/// Maximum length of a key file in bytes: the longest key that is supported has a few hundred.
const MAX_FILE: u64 = 16 * 1024;

/// Why an identity could not be loaded or stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityFileError {
    /// The file could not be read or written.
    #[error("identity file {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file holds no identity. It was not changed.
    #[error("no identity in {}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: IdentityError,
    },
}

impl From<IdentityFileError> for io::Error {
    fn from(error: IdentityFileError) -> Self {
        let kind = match &error {
            IdentityFileError::Io { source, .. } => source.kind(),
            IdentityFileError::Invalid { .. } => ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl Identity {
    /// The identity in the file `path`, in the format of [`Identity::to_protobuf`]. If there is no
    /// such file, generates an Ed25519 identity and stores it there, readable by the owner alone
    /// (mode 0600 on Unix).
    ///
    /// The file appears as a whole or not at all, also if the program is killed. Of several
    /// programs that start at once, all get the identity of the first. Its directory has to exist.
    /// A program that is killed while it stores the key can leave a file `<name>.<digits>.new`
    /// there. The mode of a file that exists is not looked at.
    ///
    /// Blocks for a moment on the file system: call it before the runtime serves anything.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use anabranch::{Endpoint, Identity};
    ///
    /// // The same peer id, certificate hash and addresses after each start.
    /// let identity = Identity::load_or_generate("identity.key")?;
    /// let builder = Endpoint::builder().identity(identity);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`IdentityFileError`]. A file that holds something else is never overwritten.
    pub fn load_or_generate(path: impl AsRef<Path>) -> Result<Self, IdentityFileError> {
        let path = path.as_ref();
        let failed = |source| IdentityFileError::Io {
            path: path.to_owned(),
            source,
        };
        match load(path) {
            Ok(bytes) => return Self::parse_file(path, &bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let identity = Self::generate();
        match store(path, &identity.to_protobuf()) {
            Ok(()) => Ok(identity),
            // Another program was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let bytes = load(path).map_err(failed)?;
                Self::parse_file(path, &bytes)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn parse_file(path: &Path, bytes: &[u8]) -> Result<Self, IdentityFileError> {
        Self::from_protobuf(bytes).map_err(|source| IdentityFileError::Invalid {
            path: path.to_owned(),
            source,
        })
    }
}

fn load(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a new file; `AlreadyExists` if there is one.
///
/// A link fails if its name exists, and a rename would replace the file: so the bytes are written
/// and synchronized under another name first. Where there are no links (FAT, some network file
/// systems), the file itself is written, which a crash can leave in part.
fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let linked = create(&temporary, bytes).and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => create(path, bytes),
        linked => linked,
    });
    let removed = fs::remove_file(&temporary);
    linked.and(removed)?;
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        // Otherwise the name may be gone after a power failure.
        let directory = match directory.as_os_str().is_empty() {
            true => Path::new("."),
            false => directory,
        };
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Writes a file that does not exist, for its owner alone.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is removed on drop.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            let name = format!("anabranch-identity-{:016x}", rand::random::<u64>());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).expect("a directory");
            Self(path)
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).expect("it exists").count()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_identity_is_the_same_after_each_start() {
        let directory = Directory::new();
        let path = directory.0.join("key");
        let first = Identity::load_or_generate(&path).expect("it is generated");
        let second = Identity::load_or_generate(&path).expect("it is loaded");
        assert_eq!(first, second);
        assert_eq!(fs::read(&path).expect("a file"), first.to_protobuf());
        assert_eq!(directory.entries(), 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn programs_that_start_at_once_get_one_identity() {
        let directory = Directory::new();
        for round in 0..20 {
            let path = directory.0.join(format!("key-{round}"));
            let identities: Vec<_> = std::thread::scope(|scope| {
                let start = || Identity::load_or_generate(&path).expect("an identity");
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .collect()
            });
            let first = &identities[0];
            assert!(identities.iter().all(|other| other == first), "{round}");
        }
        assert_eq!(directory.entries(), 20);
    }

    #[test]
    fn a_file_with_something_else_is_left_as_it_is() {
        let directory = Directory::new();
        let path = directory.0.join("key");
        for content in [&b""[..], b"no key", &[0xff; 100_000]] {
            fs::write(&path, content).expect("it is written");
            let error = Identity::load_or_generate(&path).expect_err("no identity");
            assert!(
                matches!(error, IdentityFileError::Invalid { .. }),
                "{error:?}"
            );
            assert!(error.to_string().contains("key"), "{error}");
            assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidData);
            assert_eq!(fs::read(&path).expect("a file"), content);
        }
        let nowhere = directory.0.join("missing").join("key");
        let error = Identity::load_or_generate(nowhere).expect_err("no directory");
        assert_eq!(io::Error::from(error).kind(), ErrorKind::NotFound);
        assert_eq!(directory.entries(), 1);
    }
}
