//! The SQLite file: whether the one that was opened is still in its place.
//!
//! A file that is removed, moved or replaced while it is open goes on being written to under no name, and a new connection makes an empty
//! one in its place: what is acknowledged then is lost. So each connection is given out only while the file is where it was.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::error::StoreError;

/// The file that was opened at the start.
#[derive(Clone, Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl DatabaseFile {
    /// The file that the connection string names, if it names one that is there.
    pub(super) fn of(connection_string: &str) -> Option<DatabaseFile> {
        let path = connection_string.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            key.trim().eq_ignore_ascii_case("database").then(|| PathBuf::from(value.trim()))
        })?;
        let metadata = std::fs::metadata(&path).ok()?;
        Some(DatabaseFile { path, device: metadata.dev(), inode: metadata.ino() })
    }

    /// One look at its folder, about a microsecond.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while it is not there.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == (self.device, self.inode) => Ok(()),
            Ok(_) => Err(StoreError::Unavailable(format!(
                "the SQLite file {} was replaced by another; put the first one back, or restart",
                self.path.display()
            ))),
            Err(error) => Err(StoreError::Unavailable(format!(
                "the SQLite file {} is gone ({error}); put it back with its -wal, or restart for an empty one",
                self.path.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_itself_and_not_by_its_name() {
        let folder = std::env::temp_dir().join(format!("trilane-file-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder");
        let (path, aside) = (folder.join("a.db"), folder.join("b.db"));
        let text = format!("Driver={{SQLite3}};Database={};Timeout=1;", path.display());
        assert!(DatabaseFile::of(&text).is_none(), "it is not there yet");
        std::fs::write(&path, "").expect("written");
        let file = DatabaseFile::of(&text).expect("it is there");
        assert!(file.check().is_ok());

        std::fs::rename(&path, &aside).expect("moved");
        assert!(file.check().expect_err("gone").to_string().contains("is gone"));
        std::fs::write(&path, "").expect("written");
        assert!(file.check().expect_err("another").to_string().contains("replaced"));
        std::fs::rename(&aside, &path).expect("moved back");
        assert!(file.check().is_ok());
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
