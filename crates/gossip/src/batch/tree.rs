//! A binary hash tree. Leaves and inner nodes are hashed under different first bytes, so that neither
//! passes for the other. A node without a sibling moves up as it is.

use super::{Hash, sha256};

const LEAF: &[u8] = &[0];
const NODE: &[u8] = &[1];

pub(super) fn leaf(bytes: &[u8]) -> Hash {
    sha256(&[LEAF, bytes])
}

fn parent(left: &Hash, right: &Hash) -> Hash {
    sha256(&[NODE, left, right])
}

/// All levels, leaves first. Never empty of leaves.
pub(super) struct Tree(Vec<Vec<Hash>>);

impl Tree {
    pub(super) fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => parent(left, right),
                    [alone, ..] => *alone,
                    [] => [0; 32],
                })
                .collect();
            levels.push(above);
        }
        Self(levels)
    }

    pub(super) fn root(&self) -> Hash {
        self.0.last().and_then(|level| level.first()).copied().unwrap_or([0; 32])
    }

    /// The siblings from the leaf to the root.
    pub(super) fn path(&self, index: usize) -> Vec<Hash> {
        let mut position = index;
        let mut path = Vec::new();
        for level in &self.0 {
            path.extend(level.get(position ^ 1));
            position /= 2;
        }
        path
    }
}

/// The root that the leaf and its path lead to; nothing when the path's length does not fit.
pub(super) fn root_of(bytes: &[u8], index: u32, count: u32, path: &[Hash]) -> Option<Hash> {
    if index >= count || count as usize > super::BATCH_MAX {
        return None;
    }
    let mut siblings = path.iter();
    let (mut hash, mut position, mut width) = (leaf(bytes), index, count);
    while width > 1 {
        if position ^ 1 < width {
            let sibling = siblings.next()?;
            hash = if position % 2 == 0 { parent(&hash, sibling) } else { parent(sibling, &hash) };
        }
        position /= 2;
        width = width.div_ceil(2);
    }
    siblings.next().is_none().then_some(hash)
}
