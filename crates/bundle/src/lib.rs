//! Bundles: the files that `files = […]` of a manifest names, as they travel from a developer to the hosts.
//!
//! A bundle is a [`List`]: path, kind and content hash of each file. The SHA-256 of its canonical text is its
//! digest, so that equal files make an equal bundle wherever they are packed. Contents are kept by their own hash
//! in a [`Store`], once for all bundles: only what changed travels.
//!
//! A [`List`] can't be had without its checks: no path and no link of one leaves the folder it is unpacked into.
//! [`unpack`] relies on nothing but what it opens itself, so that whoever plays with links in that folder
//! meanwhile gets nothing written elsewhere.
//!
//! No network here, no runtime; everything blocks.

mod digest;
mod list;
mod pack;
mod path;
mod remove;
mod store;
mod unpack;

pub use digest::{Digest, DigestError, Hasher};
pub use list::{BYTES_MAX, ENTRIES_MAX, Entry, LIST_BYTES_MAX, List, ListError};
pub use pack::{PackError, Packed, Source, pack};
pub use path::{PATH_BYTES_MAX, PathFault};
pub use remove::remove_tree;
pub use store::{Incoming, Store, StoreError, Swept, is_full};
pub use unpack::{UnpackError, unpack};
