//! Certificates on disk, sealed with a key of this node's, so that an edge that restarts while control is
//! gone still serves.
//!
//! One file, to which changes are appended: a change costs what it changes, and a start reads once from the
//! beginning to the end. Each entry is sealed by itself (AES-256-GCM with a random nonce) and has its domain
//! inside. The last of a domain counts. When much of the file is past, it is written anew.

use atoll_process::files::{private_dir, write_atomic};
use atoll_wire::Message as _;
use atoll_wire::node::DomainCertificate;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tracing::{info, warn};

const KEY_BYTES: usize = 32;
const KEY_FILE: &str = "edge-certificates.key";
const FILE: &str = "edge-certificates.sealed";
/// Up to version 0.1.0 there was a file for each domain in a folder.
const FOLDER_BEFORE: &str = "edge-certificates";
const SUFFIX_BEFORE: &str = ".sealed";
const PURPOSE: &[u8] = b"atoll edge certificate";
/// Longest entry: control gives far shorter ones.
const ENTRY_BYTES_MAX: u32 = 1 << 20;
/// Entries that may be past before the file is written anew, however few are not.
const PAST_MIN: usize = 1_000;

/// The file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    key: RandomizedNonceKey,
    /// Nothing before the first write.
    file: Option<File>,
    /// Bytes of whole entries. What is behind them, a write that failed has left.
    good: u64,
    entries: usize,
}

/// Why certificates can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The file or the key can't be read or written.
    #[error("can't use {path}; check the owner and mode of the data folder")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The key file is not what this node wrote.
    #[error(
        "{0} is not a key; remove it and the file of sealed certificates beside it, and they are fetched anew"
    )]
    Key(PathBuf),
    /// The cryptography library refused.
    #[error("can't seal a certificate")]
    Seal,
}

impl Journal {
    /// Opens the key in `data_dir`, or makes it, and hands over what is kept: the last of a domain counts, and
    /// one without a chain is its removal. What can't be read is fetched anew.
    pub(crate) fn open(
        data_dir: &Path,
        mut each: impl FnMut(DomainCertificate),
    ) -> Result<Self, SealedError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| SealedError::Io { path, source }
        };
        let key_path = data_dir.join(KEY_FILE);
        let key = match std::fs::read(&key_path) {
            Ok(key) => key,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => {
                private_dir(data_dir).map_err(at(data_dir))?;
                let mut key = vec![0; KEY_BYTES];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| SealedError::Seal)?;
                write_atomic(&key_path, &key, 0o600).map_err(at(&key_path))?;
                key
            }
            Err(source) => return Err(at(&key_path)(source)),
        };
        if key.len() != KEY_BYTES {
            return Err(SealedError::Key(key_path));
        }
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| SealedError::Key(key_path))?;
        let path = data_dir.join(FILE);
        let mut journal = Self { path, key, file: None, good: 0, entries: 0 };
        // First the older: what the file says of the same domain is newer.
        let before = data_dir.join(FOLDER_BEFORE);
        let found = journal.read_folder(&before);
        found.iter().flatten().cloned().for_each(&mut each);
        let mut known = HashSet::new();
        journal.read(|certificate| {
            if found.is_some() {
                known.insert(certificate.domain.clone());
            }
            each(certificate);
        })?;
        if let Some(found) = found {
            journal.take_over(&before, found, &known);
        }
        Ok(journal)
    }

    /// Appends certificates, and removals (nothing in the place of one). All are on disk when it returns.
    pub(crate) fn append(
        &mut self,
        changes: &[(String, Option<DomainCertificate>)],
    ) -> Result<(), SealedError> {
        let mut bytes = Vec::new();
        for (domain, certificate) in changes {
            let removal = || DomainCertificate { domain: domain.clone(), ..DomainCertificate::default() };
            self.seal(&certificate.clone().unwrap_or_else(removal), &mut bytes)?;
        }
        self.write(&bytes).map_err(|source| SealedError::Io { path: self.path.clone(), source })?;
        self.entries += changes.len();
        Ok(())
    }

    /// Whether so much of the file is past that it is to be written anew, of `current` certificates.
    pub(crate) fn is_mostly_past(&self, current: usize) -> bool {
        self.entries > current * 2 + PAST_MIN
    }

    /// Writes the file anew.
    pub(crate) fn rewrite(
        &mut self,
        certificates: impl Iterator<Item = DomainCertificate>,
    ) -> Result<(), SealedError> {
        let temporary = self.path.with_extension("new");
        let mut count = 0;
        let written = || -> io::Result<File> {
            let mut file = BufWriter::new(options().write(true).truncate(true).open(&temporary)?);
            let mut bytes = Vec::new();
            for certificate in certificates {
                bytes.clear();
                self.seal(&certificate, &mut bytes).map_err(io::Error::other)?;
                file.write_all(&bytes)?;
                count += 1;
            }
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
            Ok(file)
        };
        let file = written().and_then(|file| Ok((file.metadata()?.len(), file)));
        match file {
            Ok((good, file)) => {
                (self.file, self.good, self.entries) = (Some(file), good, count);
                Ok(())
            }
            Err(source) => {
                // Best effort: the error that counts is the one we return.
                let _ignored = std::fs::remove_file(&temporary);
                self.file = None;
                Err(SealedError::Io { path: self.path.clone(), source })
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.good == 0 {
            // Whole or not there, from its first entry on.
            write_atomic(&self.path, bytes, 0o600)?;
            self.good = bytes.len() as u64;
            return Ok(());
        }
        let good = self.good;
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(options().write(true).open(&self.path)?),
        };
        let mut written = || {
            // Also what a write before that failed has left.
            file.set_len(good)?;
            file.seek(SeekFrom::Start(good))?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        match written() {
            Ok(()) => {
                self.good += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Opened anew the next time: it may be another file by then.
                self.file = None;
                Err(error)
            }
        }
    }

    fn seal(&self, certificate: &DomainCertificate, into: &mut Vec<u8>) -> Result<(), SealedError> {
        let mut content = certificate.encode_to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(PURPOSE), &mut content)
            .map_err(|_| SealedError::Seal)?;
        let length = u32::try_from(NONCE_LEN + content.len()).map_err(|_| SealedError::Seal)?;
        if length > ENTRY_BYTES_MAX {
            return Err(SealedError::Seal);
        }
        into.extend_from_slice(&length.to_be_bytes());
        into.extend_from_slice(nonce.as_ref());
        into.extend_from_slice(&content);
        Ok(())
    }

    /// Every entry, in the order in which they were written.
    fn read(&mut self, mut each: impl FnMut(DomainCertificate)) -> Result<(), SealedError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(SealedError::Io { path: self.path.clone(), source }),
        };
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut unreadable = 0;
        loop {
            match next_entry(&mut file) {
                Ok(Some(entry)) => {
                    self.good += 4 + entry.len() as u64;
                    self.entries += 1;
                    match self.open_entry(PURPOSE, entry) {
                        Some(certificate) => each(certificate),
                        None => unreadable += 1,
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // The end of a write that was cut off.
                    warn!(path = %self.path.display(), %error, "the last of the kept certificates is cut off");
                    break;
                }
            }
        }
        if unreadable > 0 {
            warn!(unreadable, "sealed certificates can't be opened; they will be fetched anew");
        }
        Ok(())
    }

    fn open_entry(&self, purpose: &[u8], mut content: Vec<u8>) -> Option<DomainCertificate> {
        let nonce: [u8; NONCE_LEN] = content.get(..NONCE_LEN)?.try_into().ok()?;
        let sealed = content.get_mut(NONCE_LEN..)?;
        let opened =
            self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), sealed).ok()?;
        DomainCertificate::decode(&*opened).ok()
    }

    /// What an earlier version kept in a folder; nothing where there is none.
    fn read_folder(&self, folder: &Path) -> Option<Vec<DomainCertificate>> {
        let certificate = |file: std::fs::DirEntry| {
            let name = file.file_name().to_string_lossy().into_owned();
            let content = std::fs::read(file.path()).ok().filter(|_| name.ends_with(SUFFIX_BEFORE));
            self.open_entry(name.as_bytes(), content?)
        };
        Some(std::fs::read_dir(folder).ok()?.flatten().filter_map(certificate).collect())
    }

    /// Moves it into the file.
    fn take_over(&mut self, folder: &Path, found: Vec<DomainCertificate>, known: &HashSet<String>) {
        let new = found.into_iter().filter(|certificate| !known.contains(&certificate.domain));
        let changes: Vec<_> =
            new.map(|certificate| (certificate.domain.clone(), Some(certificate))).collect();
        info!(certificates = changes.len(), "certificates of an earlier version's folder are taken over");
        let moved = self.append(&changes).map_err(io::Error::other);
        if let Err(error) = moved.and_then(|()| std::fs::remove_dir_all(folder)) {
            warn!(folder = %folder.display(), %error, "the folder of an earlier version stays for now");
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// The next entry; nothing at the end; an error when it is not whole.
fn next_entry(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match file.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => file.read_exact(&mut length[1..])?,
    }
    let length = u32::from_be_bytes(length);
    if length > ENTRY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an entry that is too long"));
    }
    let mut entry = vec![0; length as usize];
    file.read_exact(&mut entry)?;
    Ok(Some(entry))
}

#[cfg(test)]
pub(super) mod tests;
