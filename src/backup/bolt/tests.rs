//! Round trips, and files that are damaged in every way.

use std::collections::BTreeMap;
use std::io::{self, Cursor};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

type Contents = BTreeMap<Bytes, BTreeMap<Bytes, Bytes>>;

fn write(contents: &Contents) -> Bytes {
    let mut file = Cursor::new(Vec::new());
    let mut writer = Writer::new(&mut file).expect("begun");
    for (name, pairs) in contents {
        let name = std::str::from_utf8(name).expect("a name");
        let pairs = pairs.iter().map(|(key, value)| Ok((key.clone(), value.clone())));
        writer.bucket(name, pairs).expect("written");
    }
    let size = writer.finish().expect("written");
    assert_eq!(size, file.get_ref().len() as u64);
    file.into_inner().into()
}

fn read(file: Bytes) -> io::Result<Contents> {
    let database = Database::open(file)?;
    let mut contents = Contents::new();
    for (name, bucket) in database.buckets()? {
        contents.insert(name, database.pairs(&bucket)?.collect::<io::Result<_>>()?);
    }
    Ok(contents)
}

fn bucket(pairs: impl IntoIterator<Item = (Bytes, Bytes)>) -> BTreeMap<Bytes, Bytes> {
    pairs.into_iter().collect()
}

fn bytes(rng: &mut StdRng, length: usize) -> Bytes {
    (0..length).map(|_| rng.random::<u8>()).collect()
}

/// A small file with everything in it: branches, a value that runs over, an empty bucket.
fn example() -> Contents {
    let mut rng = StdRng::seed_from_u64(1);
    let mut many = bucket((0..70u32).map(|n| (n.to_be_bytes().to_vec().into(), bytes(&mut rng, 60))));
    many.insert(Bytes::from_static(b"large"), bytes(&mut rng, 5000));
    Contents::from([
        (Bytes::from_static(b"alarm"), bucket([])),
        (Bytes::from_static(b"key"), many),
        (
            Bytes::from_static(b"meta"),
            bucket([(Bytes::from_static(b"m"), Bytes::new())]),
        ),
    ])
}

#[test]
fn random_buckets_are_read_back() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut contents = Contents::new();
        for name in 0..rng.random_range(0..5) {
            let pairs = (0..rng.random_range(0..300)).map(|_| {
                let key = rng.random_range(1..40);
                let value = match rng.random_range(0..20) {
                    0 => rng.random_range(3000..20_000),
                    _ => rng.random_range(0..200),
                };
                (bytes(&mut rng, key), bytes(&mut rng, value))
            });
            contents.insert(format!("bucket {name}").into(), bucket(pairs));
        }
        assert_eq!(read(write(&contents)).expect("whole"), contents);
    }
}

#[test]
fn a_tree_of_several_levels_is_read_back() {
    let pairs = bucket((0..70_000u64).map(|n| (n.to_be_bytes().to_vec().into(), Bytes::from(n.to_string()))));
    let contents = Contents::from([(Bytes::from_static(b"key"), pairs)]);
    assert_eq!(read(write(&contents)).expect("whole"), contents);
}

#[test]
fn keys_must_come_in_order() {
    let mut writer = Writer::new(Cursor::new(Vec::new())).expect("begun");
    let key = Bytes::from_static(b"k");
    let twice = [Ok((key.clone(), Bytes::new())), Ok((key, Bytes::new()))];
    assert!(writer.bucket("b", twice.into_iter()).is_err());
    let mut writer = Writer::new(Cursor::new(Vec::new())).expect("begun");
    writer.bucket("b", std::iter::empty()).expect("written");
    assert!(writer.bucket("a", std::iter::empty()).is_err());
}

#[test]
fn every_cut_is_found() {
    let file = write(&example());
    for length in (0..file.len()).step_by(13).chain(file.len() - 200..file.len()) {
        assert!(read(file.slice(..length)).is_err(), "cut to {length}");
    }
}

/// A flipped bit may be in a value, which nothing here protects (the checksum behind the file does): then the rest is as
/// it was. It never makes a panic or a walk without an end.
#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let file = write(&example());
    let pairs = |contents: &Contents| contents.values().map(BTreeMap::len).sum::<usize>();
    let whole = pairs(&example());
    // Every byte of the heads, where the numbers are, and some of the others.
    let heads = (0..file.len()).filter(|at| at % PAGE < 400);
    for at in heads.chain((0..file.len()).step_by(17)) {
        let mut flipped = file.to_vec();
        flipped[at] ^= 1 << (at % 8);
        if let Ok(contents) = read(flipped.into()) {
            assert!(pairs(&contents) <= whole, "byte {at}");
        }
    }
}

#[test]
fn bytes_at_random_do_no_harm() {
    let file = write(&example());
    for seed in 0..500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut changed = file.to_vec();
        for _ in 0..rng.random_range(1..20) {
            // Heads of pages and elements, mostly: there the numbers are.
            let page = rng.random_range(2..changed.len() / PAGE) * PAGE;
            let at = page + rng.random_range(0..64);
            changed[at] = *[0, 1, 2, 3, 4, 255, rng.random()]
                .get(rng.random_range(0..7))
                .expect("there");
        }
        // Whatever comes of it, it comes to an end.
        let _ = read(changed.into());
    }
}

#[test]
fn a_loop_of_pages_is_an_error() {
    let contents = example();
    let mut file = write(&contents).to_vec();
    // A branch page becomes its own child.
    let branch = (2..file.len() / PAGE)
        .map(|page| page * PAGE)
        .find(|at| file[at + 8] == BRANCH as u8)
        .expect("a branch");
    let id = (branch / PAGE) as u64;
    file[branch + PAGE_HEAD + 8..branch + PAGE_HEAD + 16].copy_from_slice(&id.to_le_bytes());
    assert!(read(file.into()).is_err());
}

#[test]
fn either_meta_will_do() {
    let contents = example();
    for broken in [0, PAGE] {
        let mut file = write(&contents).to_vec();
        file[broken + PAGE_HEAD] ^= 1;
        assert_eq!(read(file.into()).expect("whole"), contents);
    }
}
