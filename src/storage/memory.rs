//! An engine in memory, for tests and as the model that sled is held against.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use super::{Batch, Engine, Error, Lent, Names, Pair, Place, Result};

/// The number of the file that it lends.
const LENT: u32 = 1;

/// A map.
#[derive(Debug, Default)]
pub struct Memory {
    pairs: RwLock<BTreeMap<Bytes, Bytes>>,
}

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self
            .pairs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned())
    }

    fn floor(&self, from: &[u8], key: &[u8]) -> Result<Option<Pair>> {
        if from > key {
            return Ok(None);
        }
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let range = (Bound::Included(from), Bound::Included(key));
        Ok(pairs
            .range::<[u8], _>(range)
            .next_back()
            .map(|(key, value)| (key.clone(), value.clone())))
    }

    fn scan(&self, range: Range<Bytes>) -> Box<dyn Iterator<Item = Result<Pair>> + '_> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let pairs: Vec<Pair> = pairs
            .range(range)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Box::new(pairs.into_iter().map(Ok))
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.changes {
            match value {
                Some(value) => drop(pairs.insert(key, value)),
                None => drop(pairs.remove(&key)),
            }
        }
        Ok(())
    }

    /// It has no files: it writes one.
    fn lend(&self, range: Range<Bytes>, names: &Names<'_>) -> Result<Vec<(Bytes, Lent)>> {
        let pairs = self.scan(range).collect::<Result<Vec<Pair>>>()?;
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error: std::io::Error| Error::Engine(error.to_string());
        let file = names.fs.create(&(names.of)(LENT)).map_err(failed)?;
        let (mut lent, mut at) = (Vec::new(), 0);
        for (key, value) in pairs {
            file.write_at(at, &value).map_err(failed)?;
            let place = Place::of(LENT, at as u32, &value).map_err(failed)?;
            at += value.len() as u64;
            lent.push((key, Lent::At(place)));
        }
        file.sync_data().map_err(failed)?;
        Ok(lent)
    }

    fn tidy(&self) -> Result<bool> {
        Ok(false)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        Ok(pairs
            .iter()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum())
    }

    fn lendable(&self) -> u64 {
        self.size_on_disk().unwrap_or(0)
    }

    fn discard(&self) {}
}
