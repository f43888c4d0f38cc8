//! The end: every acknowledged write is looked for on every member, as the member itself has it (serializable reads) and
//! as the cluster does (linearizable ones).

use std::collections::{BTreeMap, BTreeSet};

use super::keys::Keys;
use super::load::{Shared, WRITERS};
use super::members::Members;
use crate::client::{Client, ClientError, Options};

/// Acknowledged writes that were not found: writer and number, and where they were missed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lost(pub BTreeMap<(usize, u64), BTreeSet<String>>);

impl Lost {
    fn add(&mut self, writer: usize, numbers: impl IntoIterator<Item = u64>, place: &str) {
        for number in numbers {
            let places = self.0.entry((writer, number)).or_default();
            places.insert(place.to_string());
        }
    }
}

/// Looks for all of them. The members have caught up, and nobody writes any more.
pub async fn lost(load: &Shared, members: &Members, options: &Options) -> Result<Lost, String> {
    let mut lost = Lost::default();
    for member in members.all() {
        let missed = |error: ClientError| format!("cannot read through {}: {error}", member.name);
        let client = Client::with(std::slice::from_ref(&member.url), options.clone()).map_err(missed)?;
        // A learner answers serializable reads alone.
        let kinds = [(true, "serializable"), (false, "linearizable")];
        for (serializable, kind) in kinds.into_iter().filter(|kind| kind.0 || member.is_voter) {
            let place = format!("{} ({kind})", member.name);
            for writer in 0..WRITERS {
                let found = found(&client, &load.keys, writer, serializable);
                let (counter, found) = found.await.map_err(missed)?;
                let ledger = load.ledger(writer);
                lost.add(writer, ledger.missing(&found), &place);
                let highest = ledger.highest();
                lost.add(writer, (counter < highest).then_some(highest), &place);
            }
        }
    }
    Ok(lost)
}

/// A writer's counter, and the numbers of its writes.
async fn found(
    client: &Client,
    keys: &Keys,
    writer: usize,
    serializable: bool,
) -> Result<(u64, BTreeSet<u64>), ClientError> {
    let mut request = keys.counter(writer);
    request.serializable = serializable;
    let counter = client.range(request).await?;
    let counter = counter.kvs.first().map_or(0, |kv| Keys::number(&kv.value));
    let mut found = BTreeSet::new();
    loop {
        let behind = found.last().copied().unwrap_or(0);
        let page = client.range(keys.page(writer, behind, serializable)).await?;
        found.extend(Keys::numbers(&page));
        if !page.more || page.kvs.is_empty() {
            return Ok((counter, found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_lost_once_wherever_it_is_missed() {
        let mut lost = Lost::default();
        lost.add(1, [7, 9], "node1 (serializable)");
        lost.add(1, [9], "node2 (linearizable)");
        lost.add(2, None, "node2 (linearizable)");
        assert_eq!(lost.0.len(), 2);
        assert_eq!(lost.0[&(1, 9)].len(), 2);
    }
}
