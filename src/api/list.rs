//! `GET /getAllJobs` and `GET /failed-jobs`: filters, pages, and whole listings in constant memory.
//!
//! Rows come from the backend in chunks. A chunk is made as large as the rows of the last one allow, so that neither a thousand
//! payloads of 256 KiB fill the memory nor small rows cost a query each.
//!
//! With `limit` an answer is one page: up to that many rows, fewer where they are large; `Link: <…>; rel="next"` says that there
//! are more. Without it the answer is everything, read while it is sent. If the backend fails meanwhile, the reader fails, and the
//! wire breaks the answer off so that the client cannot take it for whole.
//! Each chunk is a query of its own: what changes meanwhile may be seen before or after, and what arrives may still be seen.

use std::io::{self, Read};

use serde::Serialize;

use super::backend::SharedBackend;
use super::message::{Answer, JSON};
use super::problem::Problem;
use super::query::Query;
use crate::clock::Timestamp;
use crate::job::{DeadLetter, Job, Lane, Seq, Status, TYPE_CHARS_MAX};
use crate::store::{DeadLetterFilter, JobFilter, StoreError};

/// The most rows in one page.
const LIMIT_MAX: usize = 1_000;
/// Rows of the first chunk, when nothing is known of their size.
const CHUNK_ROWS_FIRST: usize = 16;
/// Rows of the largest chunk.
const CHUNK_ROWS_MAX: usize = 500;
/// What a chunk should hold, in bytes of JSON.
const CHUNK_BYTES: usize = 1 << 20;
/// A page ends early once it holds this, in bytes of JSON.
const PAGE_BYTES: usize = 8 << 20;

/// Answers `GET /getAllJobs`.
pub(super) fn jobs(backend: SharedBackend, path: &str, query: &str) -> Result<Answer, Problem> {
    let query = Query::read(query, &["status", "type", "priority", "since", "limit", "cursor"])?;
    let statuses = "one of queued, running, retrying, completed, failed, cancelled";
    let filter = JobFilter {
        status: query.parse("status", statuses, Status::parse)?,
        job_type: job_type(&query)?,
        lane: lane(&query)?,
        since: since(&query)?,
    };
    answer(backend, Listing::Jobs(filter), path, &query)
}

/// Answers `GET /failed-jobs`.
pub(super) fn dead_letters(backend: SharedBackend, path: &str, query: &str) -> Result<Answer, Problem> {
    let query = Query::read(query, &["type", "priority", "since", "limit", "cursor"])?;
    let filter = DeadLetterFilter { job_type: job_type(&query)?, lane: lane(&query)?, since: since(&query)? };
    answer(backend, Listing::DeadLetters(filter), path, &query)
}

/// Any text: what plain SQL wrote may not be a type name.
fn job_type(query: &Query) -> Result<Option<String>, Problem> {
    query.parse("type", "1 to 100 characters", |text| {
        (1..=TYPE_CHARS_MAX).contains(&text.chars().count()).then(|| text.to_owned())
    })
}

fn lane(query: &Query) -> Result<Option<Lane>, Problem> {
    query.parse("priority", "high, medium or low", Lane::parse)
}

fn since(query: &Query) -> Result<Option<Timestamp>, Problem> {
    query.parse("since", "a time as in RFC 3339, such as 2026-11-23T14:45:00Z", |text| text.parse().ok())
}

fn answer(backend: SharedBackend, listing: Listing, path: &str, query: &Query) -> Result<Answer, Problem> {
    let limit = query.parse("limit", "a whole number from 1 to 1000", |text| {
        text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
    })?;
    let cursor_of_link = "the cursor of a rel=\"next\" link of this listing";
    let after = query.parse("cursor", cursor_of_link, |text| listing.seq_of_cursor(text))?;

    let mut chunks = Chunks { backend, listing, after, rows_next: CHUNK_ROWS_FIRST, done: false };
    if let Some(limit) = limit {
        return page(&mut chunks, limit, path, query);
    }
    // The first chunk now: a database that is away is a 503, not a broken answer.
    let mut json = b"[".to_vec();
    chunks.append(&mut json, usize::MAX)?;
    Ok(Answer::stream(JSON, JsonArray { chunks, json, read: 0, end: End::Open }))
}

fn page(chunks: &mut Chunks, limit: usize, path: &str, query: &Query) -> Result<Answer, Problem> {
    let mut json = b"[".to_vec();
    let mut rows = 0;
    while rows < limit && !chunks.done && json.len() < PAGE_BYTES {
        rows += chunks.append(&mut json, limit - rows)?;
    }
    json.push(b']');

    let answer = Answer::new(200, JSON, json);
    match chunks.after.filter(|_| !chunks.done) {
        Some(last) => {
            let next = query.with("cursor", &chunks.listing.cursor_of_seq(last));
            Ok(answer.with_header("Link", format!("<{path}?{next}>; rel=\"next\"")))
        }
        None => Ok(answer),
    }
}

/// Which rows are listed.
enum Listing {
    Jobs(JobFilter),
    DeadLetters(DeadLetterFilter),
}

impl Listing {
    /// The letter before a cursor, so that one of the other listing is refused.
    fn mark(&self) -> char {
        match self {
            Listing::Jobs(_) => 'j',
            Listing::DeadLetters(_) => 'd',
        }
    }

    fn cursor_of_seq(&self, seq: Seq) -> String {
        format!("{}{:x}", self.mark(), seq.0)
    }

    fn seq_of_cursor(&self, cursor: &str) -> Option<Seq> {
        let digits = cursor.strip_prefix(self.mark()).filter(|digits| !digits.starts_with(['+', '-']))?;
        i64::from_str_radix(digits, 16).ok().map(Seq)
    }
}

/// The rows of a listing, chunk by chunk.
struct Chunks {
    backend: SharedBackend,
    listing: Listing,
    after: Option<Seq>,
    rows_next: usize,
    done: bool,
}

impl Chunks {
    /// Appends the next rows, up to `rows_max`, to an array that was begun with `[`, and returns how many.
    fn append(&mut self, json: &mut Vec<u8>, rows_max: usize) -> Result<usize, StoreError> {
        let rows_max = rows_max.min(self.rows_next);
        let bytes_before = json.len();
        // One row more than wanted tells whether there are more.
        let backend = self.backend.as_ref();
        let (rows, more, last) = match &self.listing {
            Listing::Jobs(filter) => put(&backend.jobs(filter, self.after, rows_max + 1)?, rows_max, json)?,
            Listing::DeadLetters(filter) => {
                put(&backend.dead_letters(filter, self.after, rows_max + 1)?, rows_max, json)?
            }
        };
        self.after = last.or(self.after);
        self.done = !more;

        let row_bytes = ((json.len() - bytes_before) / rows.max(1)).max(1);
        self.rows_next = (CHUNK_BYTES / row_bytes).clamp(1, CHUNK_ROWS_MAX);
        Ok(rows)
    }
}

/// A row of a listing.
trait Row: Serialize {
    fn seq(&self) -> Seq;
}

impl Row for Job {
    fn seq(&self) -> Seq {
        self.seq
    }
}

impl Row for DeadLetter {
    fn seq(&self) -> Seq {
        self.seq
    }
}

/// Appends up to `rows_max` of `rows`; returns how many, whether that left any, and the place of the last one.
fn put<R: Row>(rows: &[R], rows_max: usize, json: &mut Vec<u8>) -> Result<(usize, bool, Option<Seq>), StoreError> {
    let kept = &rows[..rows.len().min(rows_max)];
    for row in kept {
        if json.last() != Some(&b'[') {
            json.extend(b",\n");
        }
        serde_json::to_writer(&mut *json, row).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    }
    Ok((kept.len(), rows.len() > rows_max, kept.last().map(Row::seq)))
}

/// A whole listing as a JSON array, read while it is sent.
struct JsonArray {
    chunks: Chunks,
    // `[` and the first rows at the start.
    json: Vec<u8>,
    read: usize,
    end: End,
}

/// How far a [`JsonArray`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Closed,
    Failed,
}

impl Read for JsonArray {
    /// # Errors
    /// The backend failed. Every later read fails too.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.json.len() {
            self.json.clear();
            self.read = 0;
            match self.end {
                End::Closed => return Ok(0),
                End::Failed => return Err(io::Error::other("the listing was broken off")),
                End::Open if self.chunks.done => {
                    self.json.push(b']');
                    self.end = End::Closed;
                }
                End::Open => {
                    if let Err(error) = self.chunks.append(&mut self.json, usize::MAX) {
                        log::warn!(error:%; "a listing was broken off, for the store failed");
                        self.json.clear();
                        self.end = End::Failed;
                    }
                }
            }
        }

        let rest = &self.json[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
