//! The jobs in the body of `POST /enqueue`: read in one pass, then each checked by itself.
//!
//! The fields stay slices of the body until they are checked, so a body of a megabyte costs no tree. A wrong field spoils its
//! job only; wrong JSON spoils the whole body. In every field but `payload`, `null` means that it is not given.

use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::job::{
    Lane, NewJob, RETRIES_MAX, Start, TIMEOUT_MAX, TYPE_CHARS_MAX, UNIQUE_KEY_CHARS_MAX, cut, is_type_name,
};

/// The payload of a job that names none.
const PAYLOAD_DEFAULT: &str = "{}";
/// The longest delay that a job may ask for: ten years.
const DELAY_MS_MAX: u64 = 10 * 365 * 24 * 60 * 60 * 1_000;
/// How much of a wrong value or name is shown, in characters.
const SHOWN_CHARS_MAX: usize = 60;
/// How many unknown fields of one job are named.
const UNKNOWN_FIELDS_NAMED_MAX: usize = 5;

const FIELDS: [&str; 8] =
    ["type", "payload", "priority", "max_retries", "run_at", "delay_ms", "timeout_ms", "unique_key"];
const TYPE: usize = 0;
const PAYLOAD: usize = 1;
const PRIORITY: usize = 2;
const MAX_RETRIES: usize = 3;
const RUN_AT: usize = 4;
const DELAY_MS: usize = 5;
const TIMEOUT_MS: usize = 6;
const UNIQUE_KEY: usize = 7;

/// A JSON value where a job is expected, or an array of jobs.
pub(super) enum Node<'a> {
    /// An object.
    Job(Fields<'a>),
    /// An array: up to the limit its elements, and how many there are in all.
    Many(Vec<Node<'a>>, usize),
    /// Neither; in words, such as "a number".
    Other(&'static str),
}

/// The fields of a job as they stand in the body.
pub(super) struct Fields<'a> {
    texts: [Option<&'a RawValue>; FIELDS.len()],
    twice: Vec<&'static str>,
    unknown: Vec<String>,
}

/// Why a job is refused.
pub(super) struct Refused {
    /// Its type, where it has one.
    pub(super) job_type: Option<String>,
    /// Everything that is wrong with it.
    pub(super) error: String,
}

/// Reads a body.
///
/// # Errors
/// The body is not JSON; the error has line and column.
pub(super) fn read(body: &str, jobs_max: usize) -> Result<Node<'_>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(body);
    let node = NodeSeed { elements_max: Some(jobs_max) }.deserialize(&mut json)?;
    json.end()?;
    Ok(node)
}

struct NodeSeed {
    // `None`: an array is no job, so it is not looked into.
    elements_max: Option<usize>,
}

impl<'de> DeserializeSeed<'de> for NodeSeed {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Node<'de>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a job")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut fields = Fields { texts: [None; FIELDS.len()], twice: Vec::new(), unknown: Vec::new() };
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name {
                Ok(field) => {
                    if fields.texts[field].replace(map.next_value()?).is_some() {
                        fields.twice.push(FIELDS[field]);
                    }
                }
                Err(unknown) => {
                    map.next_value::<IgnoredAny>()?;
                    if fields.unknown.len() < UNKNOWN_FIELDS_NAMED_MAX {
                        fields.unknown.push(unknown);
                    }
                }
            }
        }
        Ok(Node::Job(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        let mut elements = Vec::new();
        if let Some(elements_max) = self.elements_max {
            while elements.len() < elements_max {
                match seq.next_element_seed(NodeSeed { elements_max: None })? {
                    Some(element) => elements.push(element),
                    None => break,
                }
            }
        }
        let mut count = elements.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(if self.elements_max.is_some() {
            Node::Many(elements, count)
        } else {
            Node::Other("an array")
        })
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node<'de>, E> {
        Ok(Node::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node<'de>, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node<'de>, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node<'de>, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Node<'de>, E> {
        Ok(Node::Other("a string"))
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Other("null"))
    }
}

/// Reads the name of a field: its place in [`FIELDS`], or the name itself.
struct NameSeed;

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = Result<usize, String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed {
    type Value = Result<usize, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(FIELDS.iter().position(|known| *known == name).ok_or_else(|| cut(name, SHOWN_CHARS_MAX)))
    }
}

impl Fields<'_> {
    /// The job, with a new id, or everything that is wrong with it.
    pub(super) fn check(&self, payload_bytes_max: usize) -> Result<NewJob, Refused> {
        let mut problems = self.strange_names();
        let job_type = keep(self.job_type(), &mut problems);
        let payload = keep(self.payload(payload_bytes_max), &mut problems);
        let lane = keep(self.lane(), &mut problems);
        let max_retries = keep(self.whole(MAX_RETRIES, 0, RETRIES_MAX.into()), &mut problems);
        let start = keep(self.start(), &mut problems);
        let timeout = keep(self.timeout(), &mut problems);
        let unique_key = keep(self.unique_key(), &mut problems);

        if !problems.is_empty() {
            let job_type = self.texts[TYPE].and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
            let job_type = job_type.map(|name| cut(&name, TYPE_CHARS_MAX));
            return Err(Refused { job_type, error: problems.join("; ") });
        }
        let mut job = NewJob::new(job_type.unwrap_or_default(), payload.unwrap_or_default());
        job.lane = lane.unwrap_or_default();
        if let Some(retries) = max_retries.flatten() {
            job.max_retries = u32::try_from(retries).unwrap_or(RETRIES_MAX); // OK: at most RETRIES_MAX
        }
        job.start = start.unwrap_or_default();
        job.timeout = timeout.flatten();
        job.unique_key = unique_key.flatten();
        Ok(job)
    }

    fn strange_names(&self) -> Vec<String> {
        let twice = self.twice.iter().map(|name| format!("{name} is given twice"));
        let unknown = self.unknown.iter().map(|name| match nearest_field(name) {
            Some(near) => format!("unknown field {name:?}, did you mean {near:?}?"),
            None => format!("unknown field {name:?}, known are {}", FIELDS.join(", ")),
        });
        twice.chain(unknown).collect()
    }

    /// The text of a field that is given and not `null`.
    fn given(&self, field: usize) -> Option<&str> {
        self.texts[field].map(RawValue::get).filter(|text| *text != "null")
    }

    fn job_type(&self) -> Result<String, String> {
        let Some(text) = self.given(TYPE) else { return Err("type is missing".to_owned()) };
        match serde_json::from_str::<String>(text) {
            Ok(name) if is_type_name(&name) => Ok(name),
            _ => Err(format!("type must be 1 to {TYPE_CHARS_MAX} characters of A-Za-z0-9._:-, got {}", shown(text))),
        }
    }

    /// The payload as JSON text. A string that holds JSON text is taken as that text, as in the original system; a string that
    /// does not is kept as the JSON string that it is.
    fn payload(&self, bytes_max: usize) -> Result<String, String> {
        let Some(raw) = self.texts[PAYLOAD] else { return Ok(PAYLOAD_DEFAULT.to_owned()) };
        let mut payload = raw.get().to_owned();
        if payload.starts_with('"') {
            let inside: String =
                serde_json::from_str(&payload).map_err(|_| "payload holds half of a surrogate pair".to_owned())?;
            if serde_json::from_str::<IgnoredAny>(&inside).is_ok() {
                payload = inside;
            }
        }
        if payload.len() > bytes_max {
            return Err(format!("payload has {} bytes, at most {bytes_max} are allowed", payload.len()));
        }
        Ok(payload)
    }

    fn lane(&self) -> Result<Lane, String> {
        let Some(text) = self.given(PRIORITY) else { return Ok(Lane::default()) };
        let name = serde_json::from_str::<String>(text).ok();
        name.and_then(|name| Lane::parse(&name))
            .ok_or_else(|| format!("priority must be \"high\", \"medium\" or \"low\", got {}", shown(text)))
    }

    fn start(&self) -> Result<Start, String> {
        let delay_ms = self.whole(DELAY_MS, 0, DELAY_MS_MAX)?;
        let Some(text) = self.given(RUN_AT) else {
            return Ok(delay_ms.map_or(Start::Now, |millis| Start::After(Duration::from_millis(millis))));
        };
        if delay_ms.is_some() {
            return Err("give run_at or delay_ms, not both".to_owned());
        }
        serde_json::from_str::<Timestamp>(text).map(Start::At).map_err(|_| {
            format!("run_at must be a time as in RFC 3339, such as \"2026-11-23T14:45:00Z\", got {}", shown(text))
        })
    }

    fn timeout(&self) -> Result<Option<Duration>, String> {
        let max = u64::try_from(TIMEOUT_MAX.as_millis()).unwrap_or(u64::MAX); // OK: one day
        Ok(self.whole(TIMEOUT_MS, 1, max)?.map(Duration::from_millis))
    }

    fn unique_key(&self) -> Result<Option<String>, String> {
        let Some(text) = self.given(UNIQUE_KEY) else { return Ok(None) };
        let key = serde_json::from_str::<String>(text).ok();
        // Blanks at the end do not count when SQL Server compares, and PostgreSQL stores no NUL.
        let fits = |key: &String| {
            (1..=UNIQUE_KEY_CHARS_MAX).contains(&key.encode_utf16().count())
                && key.trim() == key
                && !key.contains(char::is_control)
        };
        match key.filter(fits) {
            Some(key) => Ok(Some(key)),
            None => Err(format!(
                "unique_key must be a string of 1 to {UNIQUE_KEY_CHARS_MAX} characters (UTF-16), without control characters or \
                 blanks at its ends, got {}",
                shown(text)
            )),
        }
    }

    fn whole(&self, field: usize, min: u64, max: u64) -> Result<Option<u64>, String> {
        let Some(text) = self.given(field) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(format!("{} must be a whole number from {min} to {max}, got {}", FIELDS[field], shown(text))),
        }
    }
}

fn keep<T>(result: Result<T, String>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

fn shown(text: &str) -> String {
    cut(text, SHOWN_CHARS_MAX)
}

/// The known field that is most like `name`, also where that is written as `maxRetries`; `None` where none is much alike.
fn nearest_field(name: &str) -> Option<&'static str> {
    const ALIKE_MIN: f64 = 0.85; // "retries" is to "max_retries" 0.88, "queue" to "unique_key" 0.70
    let name = name.to_ascii_lowercase();
    let (alike, near) = FIELDS
        .iter()
        .map(|known| (strsim::jaro_winkler(&name, known), *known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (alike >= ALIKE_MIN).then_some(near)
}

#[cfg(test)]
mod tests;
