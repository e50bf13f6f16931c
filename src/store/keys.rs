//! Unique keys: at most one live job has each. They bind while they stand in JobKeys.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use super::batch::{Batch, Text, Texts};
use super::session::{Param, Session};
use super::submit::uuid;
use super::{BATCH_MAX, StoreError, id_list};
use crate::job::Seq;

/// How often a key is asked for that another held at first and then nobody, before the whole transaction begins anew.
const TRIES_MAX: u32 = 8;

#[derive(Serialize)]
struct KeyRow<'a> {
    unique_key: Text<'a>,
    id: Uuid,
}

/// Takes each key for its job, unless another has it. Returns who has each of them now.
pub(super) fn take(session: &mut Session, mut keys: Vec<(&str, Uuid)>) -> Result<HashMap<String, Uuid>, StoreError> {
    // In one order everywhere, so that two sessions never wait for each other.
    keys.sort_unstable();
    let mut holders = HashMap::with_capacity(keys.len());
    for _ in 0..TRIES_MAX {
        for keys in keys.chunks(BATCH_MAX) {
            let mut texts = Texts::of(session);
            let batch = rows(&mut texts, keys)?;
            session.execute("keys_take", &batch.params()).map_err(StoreError::taken_meanwhile)?;
            holders.extend(held(session, keys)?);
        }
        // One that nobody has was given up by its job between the two statements.
        keys.retain(|(key, _)| !holders.contains_key(*key));
        if keys.is_empty() {
            return Ok(holders);
        }
    }
    Err(StoreError::Contended("a unique key changes hands again and again".into()))
}

/// Who has these keys (up to [`BATCH_MAX`]); those that are free are left out.
pub(super) fn held(session: &mut Session, keys: &[(&str, Uuid)]) -> Result<HashMap<String, Uuid>, StoreError> {
    let mut texts = Texts::of(session);
    let batch = rows(&mut texts, keys)?;
    let mut holders = HashMap::with_capacity(keys.len());
    session.query("keys_held", &batch.params(), |row| {
        holders.insert(row.text(1)?, uuid(&row.text(2)?)?);
        Ok(())
    })?;
    Ok(holders)
}

/// Gives up the key of a job that ended, where it has one.
pub(super) fn free_of(session: &mut Session, seq: Seq) -> Result<(), StoreError> {
    let list = id_list(session.dialect(), [seq.0]);
    session.execute("keys_free_of", &[Param::Text(&list)])
}

/// Gives up the keys (up to [`BATCH_MAX`]) of jobs that ended; one that another job has stays.
pub(super) fn free<'a>(
    session: &mut Session,
    keys: impl IntoIterator<Item = (&'a str, Uuid)>,
) -> Result<(), StoreError> {
    let mut keys: Vec<(&'a str, Uuid)> = keys.into_iter().collect();
    if keys.is_empty() {
        return Ok(());
    }
    keys.sort_unstable();
    let mut texts = Texts::of(session);
    let batch = rows(&mut texts, &keys)?;
    session.execute("keys_free", &batch.params())
}

fn rows<'t>(texts: &'t mut Texts, keys: &[(&str, Uuid)]) -> Result<Batch<'t>, StoreError> {
    let rows: Vec<KeyRow<'_>> = keys.iter().map(|&(key, id)| KeyRow { unique_key: texts.put(key), id }).collect();
    texts.batch(&rows)
}
