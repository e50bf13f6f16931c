//! Parameters of statements: numbers and text, and how each driver takes text unchanged.

use odbc_api::parameter::{InputParameter, VarCharBox, VarWCharBox, WithDataType};
use odbc_api::{DataType, IntoParameter};

use super::error::StoreError;

/// How text goes through a driver and back unchanged; found out by [`super::probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextMode {
    /// UTF-8.
    Narrow,
    /// UTF-16, of any length.
    Wide,
    /// UTF-16, in chunks of [`CHUNK_UNITS`], for drivers that cut parameters there (FreeTDS 1.3).
    WideChunks,
}

/// The longest parameter that FreeTDS 1.3 sends whole, in UTF-16 units.
const CHUNK_UNITS: usize = 4_000;
/// Chunks of one parameter at most: SQL Server takes 2,100 parameters.
const CHUNKS_MAX: usize = 2_048;

/// A parameter of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Param<'a> {
    Int(i64),
    MaybeInt(Option<i64>),
    Text(&'a str),
    MaybeText(Option<&'a str>),
}

/// The chunks that the longest text parameter needs, rounded up to a power of two so that few texts (and plans) exist.
pub(super) fn chunks_for(params: &[Param<'_>]) -> Result<usize, StoreError> {
    let longest = params.iter().map(|param| match param {
        // One less than a chunk holds: a chunk that would end within a surrogate pair ends before it.
        Param::Text(text) | Param::MaybeText(Some(text)) => text.encode_utf16().count().div_ceil(CHUNK_UNITS - 1),
        _ => 1,
    });
    let chunks = longest.max().unwrap_or(1).max(1).next_power_of_two();
    if chunks > CHUNKS_MAX {
        return Err(StoreError::Corrupt(format!(
            "a text is longer than the {} characters that this ODBC driver can send; use Microsoft's driver",
            CHUNKS_MAX * (CHUNK_UNITS - 1)
        )));
    }
    Ok(chunks)
}

/// Puts a sum of `chunks` parameters in the place of each text parameter.
pub(super) fn in_chunks(text: &str, params: &[Param<'_>], chunks: usize) -> String {
    let sum = format!("(CAST(N'' AS nvarchar(max)){})", " + ?".repeat(chunks));
    let mut pieces = text.split('?');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for (piece, param) in pieces.zip(params) {
        out.push_str(if matches!(param, Param::Text(_) | Param::MaybeText(_)) {
            &sum
        } else {
            "?"
        });
        out.push_str(piece);
    }
    out
}

pub(super) fn bind(params: &[Param<'_>], mode: TextMode, chunks: usize) -> Vec<Box<dyn InputParameter>> {
    let mut bound: Vec<Box<dyn InputParameter>> = Vec::with_capacity(params.len());
    for param in params {
        match *param {
            Param::Int(value) => bound.push(Box::new(value)),
            Param::MaybeInt(value) => bound.push(Box::new(value.into_parameter())),
            Param::Text(text) => bind_text(&mut bound, Some(text), mode, chunks),
            Param::MaybeText(text) => bind_text(&mut bound, text, mode, chunks),
        }
    }
    bound
}

fn bind_text(bound: &mut Vec<Box<dyn InputParameter>>, text: Option<&str>, mode: TextMode, chunks: usize) {
    // Length `None` is nvarchar(max) under Microsoft's driver; NTEXT (WLongVarchar) is not to be used.
    let wide = |value: VarWCharBox, length| WithDataType::new(value, DataType::WVarchar { length });
    match (text, mode) {
        (None, TextMode::Narrow) => bound.push(Box::new(VarCharBox::null())),
        (Some(text), TextMode::Narrow) => bound.push(Box::new(VarCharBox::from_string(text.to_owned()))),
        (None, TextMode::Wide) => bound.push(Box::new(wide(VarWCharBox::null(), None))),
        (Some(text), TextMode::Wide) => {
            bound.push(Box::new(wide(VarWCharBox::from_vec(text.encode_utf16().collect()), None)));
        }
        (text, TextMode::WideChunks) => {
            let units: Option<Vec<u16>> = text.map(|text| text.encode_utf16().collect());
            let length = std::num::NonZeroUsize::new(CHUNK_UNITS);
            let mut rest = units.as_deref();
            for _ in 0..chunks {
                let value = rest.map_or_else(VarWCharBox::null, |units| {
                    let (chunk, behind) = units.split_at(chunk_end(units));
                    rest = Some(behind);
                    VarWCharBox::from_vec(chunk.to_vec())
                });
                bound.push(Box::new(wide(value, length)));
            }
        }
    }
}

/// Where the first chunk of `units` ends: never within a surrogate pair.
fn chunk_end(units: &[u16]) -> usize {
    let end = units.len().min(CHUNK_UNITS);
    let cuts_a_pair = end < units.len() && (0xD800..0xDC00).contains(&units[end - 1]);
    if cuts_a_pair { end - 1 } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_parameters_are_sent_in_chunks_and_their_number_is_a_power_of_two() {
        let long = "x".repeat(CHUNK_UNITS * 2 + 1);
        let params = [Param::Int(1), Param::Text(&long)];

        assert_eq!(chunks_for(&params).expect("few"), 4);
        assert_eq!(in_chunks("a ? b ? c", &params, 4), "a ? b (CAST(N'' AS nvarchar(max)) + ? + ? + ? + ?) c");
        assert_eq!(bind(&params, TextMode::WideChunks, 4).len(), 5);
    }
}
