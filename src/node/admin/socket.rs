//! The admin interface's socket as a file.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::base::crypto;
use crate::base::fault::{Context as _, Fault};

/// The longest path that a Unix socket can have, in octets (`sun_path` without its end).
const PATH_BYTES_MAX: usize = 107;

/// The socket's file, which is removed when this is dropped.
pub(super) struct Socket {
    path: PathBuf,
    // Held as long as the node lives: whoever wants the same path finds out before it looks.
    _lock: File,
}

impl Socket {
    /// Listens at `path`, in the place of a socket that a node left behind when it was killed. Refused while somebody listens there, or
    /// where something else is. From the first moment on only the node's own user may connect.
    pub(super) fn take(path: &Path) -> Result<(Self, UnixListener), Fault> {
        let cannot = || format!("cannot listen on {} for the admin interface", path.display());
        // It is bound under another name first, see `bind_private`.
        let length = path.as_os_str().len().max(parent(path).as_os_str().len() + "/.000000/s".len());
        if length > PATH_BYTES_MAX {
            return Err(Fault::new(format!(
                "cannot listen on {}: it takes a path of {length} octets, and a socket's has at most {PATH_BYTES_MAX}; set [admin] socket to \
                 a shorter one",
                path.display()
            )));
        }
        let in_use =
            || Fault::new(format!("{} is in use by another process: stop it first, or set [admin] socket", path.display()));
        let lock = lock_path(path);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(error)) => return Err(Fault::because(cannot(), error)),
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(Fault::new(format!("{} is there and is no socket: set [admin] socket", path.display())));
            }
            // Not a mimi-node, or it would have the lock; but it lives.
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(in_use()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Fault::because(cannot(), error)),
        }
        let listener = bind_private(path).with_context(cannot)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What is left behind is taken over by the next start. The lock's file stays: removing it would let two have "the" lock.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// The directory of `path`; an empty one is the working directory.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Binds where nobody else can reach, and then moves the socket to its place: between binding and restricting it, others could
/// connect. Moving it replaces what is there.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let [a, b, c] = crypto::random();
    let private = parent(path).join(format!(".{a:02x}{b:02x}{c:02x}"));
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    let inside = private.join("s");
    let moved = (|| {
        let listener = UnixListener::bind(&inside)?;
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    })();
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&private);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    fn refused(path: &Path) -> String {
        Socket::take(path).err().expect("refused").to_string()
    }

    #[tokio::test]
    async fn the_socket_is_the_owners_alone_and_goes_with_its_node() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("admin.sock");
        let (socket, _listener) = Socket::take(&path).expect("free");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["admin.sock", "admin.sock.lock"], "nothing is left beside it");
        UnixStream::connect(&path).expect("it listens at its place");
        drop(socket);
        assert_eq!(names(directory.path()), ["admin.sock.lock"]);
    }

    #[tokio::test]
    async fn what_a_dead_node_left_is_replaced_and_a_living_one_never() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("admin.sock");
        let (socket, listener) = Socket::take(&path).expect("free");
        assert!(refused(&path).contains("in use by another process"), "a living node's");
        // As after SIGKILL: the lock and the listener are gone, the file is not.
        drop(listener);
        let Socket { path: left, _lock } = &socket;
        _lock.unlock().expect("unlocked");
        assert!(left.exists());
        let (second, _listener) = Socket::take(&path).expect("taken over");
        UnixStream::connect(&path).expect("the new one listens");
        drop(second);
        drop(socket);
        // Another program's, which knows nothing of the lock.
        let _other = UnixListener::bind(&path).expect("a socket");
        assert!(refused(&path).contains("in use"), "a living stranger's");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone_and_a_long_path_is_said_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("admin.sock");
        fs::write(&path, "precious").expect("written");
        assert!(refused(&path).contains("is no socket"));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        let long = directory.path().join("x".repeat(PATH_BYTES_MAX));
        assert!(refused(&long).contains("set [admin] socket to a shorter one"));
        assert!(refused(&directory.path().join("no/such/admin.sock")).contains("cannot listen on"));
    }
}
