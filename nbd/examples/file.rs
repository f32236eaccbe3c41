//! Serves a file or a block device over NBD, for trying clients out and for measurements.
//!
//! ```text
//! cargo run --release -p afterimage-nbd --example file -- FILE unix:SOCKET|tcp:ADDRESS:PORT [--read-only]
//! ```
//!
//! Every request blocks in its system call, in the task of its connection: right for a page cache, wrong for a
//! product. Ctrl-C drains and ends.

use std::{
    env,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use afterimage_nbd::{Context, Errno, Export, ExportInfo, Extent, Limits, Server, ZeroFlags};
use bytes::Bytes;
use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use tokio::sync::watch;

struct FileExport {
    file: File,
    info: ExportInfo,
}

impl FileExport {
    fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        // Works for a block device too, whose metadata has no size.
        let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0))?;
        let info = ExportInfo {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            description: path.display().to_string(),
            size_bytes,
            read_only,
            ..ExportInfo::default()
        };
        Ok(Self { file, info })
    }

    fn sync_if(&self, fua: bool) -> Result<(), Errno> {
        if fua { self.file.sync_data().map_err(errno) } else { Ok(()) }
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.file, mode, offset, len).map_err(|error| errno(error.into()))
    }
}

impl Export for FileExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let wanted = len as usize;
        let mut data: Vec<u8> = Vec::with_capacity(wanted);
        while data.len() < wanted {
            let at = offset + data.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut data), at) {
                Ok(0) => return Err(Errno::Io),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(errno(error.into())),
            }
        }
        data.truncate(wanted);
        Ok(data.into())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.file.write_all_at(&data, offset).map_err(errno)?;
        self.sync_if(fua)
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.sync_if(true)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
        self.sync_if(fua)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        let mode = if flags.no_hole { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        match self.fallocate(mode | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::NotSup) if !flags.fast => {
                let zeroes = [0; 1 << 16];
                let mut done = 0;
                while done < len {
                    let here = zeroes.len().min((len - done) as usize);
                    self.file.write_all_at(&zeroes[..here], offset + done).map_err(errno)?;
                    done += here as u64;
                }
            }
            outcome => outcome?,
        }
        self.sync_if(flags.fua)
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let len = std::num::NonZeroU64::new(len);
        rustix::fs::fadvise(&self.file, offset, len, Advice::WillNeed).map_err(|error| errno(error.into()))
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>, Errno> {
        if matches!(context, Context::Dirty) {
            return Ok(vec![Extent { len_bytes: len, flags: 1 }]);
        }
        let mut extents = Vec::new();
        let end = offset + len;
        let mut at = offset;
        while at < end && extents.len() < max {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                Err(rustix::io::Errno::NXIO) => end,
                Err(error) => return Err(errno(error.into())),
            };
            let (next, flags) = if data > at {
                (data, 3)
            } else {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(at));
                (hole.map_err(|error| errno(error.into()))?.min(end), 0)
            };
            extents.push(Extent { len_bytes: next - at, flags });
            at = next;
        }
        Ok(extents)
    }
}

fn errno(error: io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull => Errno::NoSpc,
        io::ErrorKind::InvalidInput => Errno::Inval,
        io::ErrorKind::OutOfMemory => Errno::NoMem,
        io::ErrorKind::Unsupported => Errno::NotSup,
        io::ErrorKind::PermissionDenied => Errno::Perm,
        _ => Errno::Io,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("file: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [file, endpoint, options @ ..] = args.as_slice() else {
        return Err("usage: file FILE unix:SOCKET|tcp:ADDRESS:PORT [--read-only]".into());
    };
    let export = FileExport::open(Path::new(file), options.iter().any(|option| option == "--read-only"))?;
    let server = Arc::new(Server::new(vec![Arc::new(export)], Limits::default()));
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn(async move {
        // If the signal cannot be waited for, the sender goes, and that too ends the server.
        let _ = tokio::signal::ctrl_c().await;
        stop.send_replace(true);
    });
    match endpoint.split_once(':') {
        Some(("unix", path)) => server.serve_unix(path, shutdown).await?,
        Some(("tcp", addr)) => server.serve_tcp(addr.parse()?, false, shutdown).await?,
        _ => return Err(format!("{endpoint}: neither unix: nor tcp:").into()),
    }
    Ok(())
}
