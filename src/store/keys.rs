//! Unique keys: at most one live job has each. They bind while they stand in JobKeys.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use super::batch::{Batch, Text, Texts};
use super::session::Session;
use super::submit::uuid;
use super::{BATCH_MAX, StoreError};

#[derive(Serialize)]
struct KeyRow<'a> {
    unique_key: Text<'a>,
    id: Uuid,
}

/// Takes each key for its job, unless another has it. Returns who has each of them now; one that is missing was freed meanwhile.
pub(super) fn take(session: &mut Session, mut keys: Vec<(&str, Uuid)>) -> Result<HashMap<String, Uuid>, StoreError> {
    // In one order everywhere, so that two sessions never wait for each other.
    keys.sort_unstable();
    let mut holders = HashMap::with_capacity(keys.len());
    for keys in keys.chunks(BATCH_MAX) {
        let mut texts = Texts::of(session);
        let batch = rows(&mut texts, keys)?;
        session.execute("keys_take", &batch.params()).map_err(StoreError::taken_meanwhile)?;
        session.query("keys_held", &batch.params(), |row| {
            holders.insert(row.text(1)?, uuid(&row.text(2)?)?);
            Ok(())
        })?;
    }
    Ok(holders)
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
