//! A batch of rows as a statement takes it: a JSON array, and on SQL Server the rows' free text beside it.
//!
//! A payload is JSON itself. As a string within JSON each of its quotes is escaped by one side and put back by the other. So on SQL
//! Server the texts of all rows go as one parameter, one behind the other, and a row says where its own begins and how long it is:
//! one SUBSTRING, nothing to decode, and no limit but that of the parameter.

use serde::Serialize;

use super::session::{Param, Session};
use super::{Dialect, StoreError};

/// What a server counts in LEN and SUBSTRING under a binary collation; found out by [`super::probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// UTF-16 units: two for an emoji.
    Units,
    /// Characters: one for an emoji.
    Characters,
}

impl Counts {
    /// The length of `text` as the server counts it.
    pub(super) fn of(self, text: &str) -> usize {
        match self {
            Counts::Units => text.encode_utf16().count(),
            Counts::Characters => text.chars().count(),
        }
    }
}

/// A row's free text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Text<'a> {
    /// A string in the row.
    Within(&'a str),
    /// `[begin, length]` in the text beside the rows, where the first character is number 1.
    Beside(usize, usize),
}

/// The texts of the rows of a batch.
#[derive(Debug)]
pub(super) struct Texts {
    beside: Option<Beside>,
}

#[derive(Debug)]
struct Beside {
    all: String,
    next: usize,
    counts: Counts,
}

impl Texts {
    pub(super) fn of(session: &Session) -> Texts {
        let counts = (session.dialect() == Dialect::Mssql).then(|| session.counts());
        Texts { beside: counts.map(|counts| Beside { all: String::new(), next: 1, counts }) }
    }

    /// Takes a text in, and gives what stands for it in its row.
    pub(super) fn put<'a>(&mut self, text: &'a str) -> Text<'a> {
        let Some(beside) = &mut self.beside else { return Text::Within(text) };
        let (begin, length) = (beside.next, beside.counts.of(text));
        beside.all.push_str(text);
        beside.next += length;
        Text::Beside(begin, length)
    }

    /// The batch of `rows`, whose texts were put in here.
    pub(super) fn batch(&self, rows: &[impl Serialize]) -> Result<Batch<'_>, StoreError> {
        Ok(Batch { rows: json(rows)?, texts: self.beside.as_ref().map(|beside| beside.all.as_str()) })
    }
}

/// A batch, ready to be sent.
#[derive(Debug)]
pub(super) struct Batch<'t> {
    rows: String,
    texts: Option<&'t str>,
}

impl Batch<'_> {
    /// The rows, and on SQL Server their texts.
    pub(super) fn params(&self) -> Vec<Param<'_>> {
        [self.rows()].into_iter().chain(self.texts.map(Param::Text)).collect()
    }

    /// The parameters of the batch, and `more` behind them.
    pub(super) fn params_and<'a>(&'a self, more: &[Param<'a>]) -> Vec<Param<'a>> {
        let mut params = self.params();
        params.extend_from_slice(more);
        params
    }

    /// The rows alone.
    pub(super) fn rows(&self) -> Param<'_> {
        Param::Text(&self.rows)
    }
}

pub(super) fn json(value: &(impl Serialize + ?Sized)) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt(format!("a batch cannot be written as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_beside_its_row_is_found_by_begin_and_length_as_the_server_counts() {
        for (counts, crab) in [(Counts::Units, 2), (Counts::Characters, 1)] {
            let mut texts = Texts { beside: Some(Beside { all: String::new(), next: 1, counts }) };

            let put = ["a\"", "🦀", "", "b"].map(|text| texts.put(text));

            let places =
                [Text::Beside(1, 2), Text::Beside(3, crab), Text::Beside(3 + crab, 0), Text::Beside(3 + crab, 1)];
            assert_eq!(put, places);
            let batch = texts.batch(&put[..2]).expect("JSON");
            assert_eq!((batch.rows.as_str(), batch.texts), (format!("[[1,2],[3,{crab}]]").as_str(), Some("a\"🦀b")));
        }
    }

    #[test]
    fn a_text_within_its_row_is_a_string_there() {
        let mut texts = Texts { beside: None };

        let put = [texts.put("a\"")];

        let batch = texts.batch(&put).expect("JSON");
        assert_eq!((batch.rows.as_str(), batch.texts), (r#"["a\""]"#, None));
    }

    proptest! {
        #[test]
        fn any_texts_are_found_in_the_text_beside_their_rows(given in proptest::collection::vec(any::<String>(), 0..8)) {
            let mut texts = Texts { beside: Some(Beside { all: String::new(), next: 1, counts: Counts::Units }) };
            let put: Vec<Text<'_>> = given.iter().map(|text| texts.put(text)).collect();

            let all: Vec<u16> = texts.beside.as_ref().expect("beside").all.encode_utf16().collect();

            for (text, place) in given.iter().zip(put) {
                let Text::Beside(begin, length) = place else { return Err(TestCaseError::fail("within")) };
                prop_assert_eq!(&String::from_utf16(&all[begin - 1..begin - 1 + length]).expect("whole"), text);
            }
        }
    }
}
