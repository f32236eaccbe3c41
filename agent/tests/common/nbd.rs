//! The least of an NBD client: one request at a time, simple replies.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub struct Nbd {
    stream: UnixStream,
    pub size_bytes: u64,
}

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const FAST_ZERO: u16 = 16;

impl Nbd {
    pub async fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket).await?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await?;
        stream.write_u32(3).await?;
        stream.write_u64(OPTION_MAGIC).await?;
        stream.write_u32(1).await?;
        stream.write_u32(export.len() as u32).await?;
        stream.write_all(export.as_bytes()).await?;
        let size_bytes = stream.read_u64().await?;
        let _flags = stream.read_u16().await?;
        Ok(Self { stream, size_bytes })
    }

    async fn request(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), u32> {
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).await.map_err(|_| u32::MAX)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).await.map_err(|_| u32::MAX)?;
        assert_eq!(reply[..4], REPLY_MAGIC.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(error),
        }
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.request(0, 0, offset, len, &[]).await?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).await.map_err(|_| u32::MAX)?;
        Ok(data)
    }

    pub async fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.request(0, 1, offset, data.len() as u32, data).await
    }

    pub async fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.request(FUA, 1, offset, data.len() as u32, data).await
    }

    pub async fn flush(&mut self) -> Result<(), u32> {
        self.request(0, 3, 0, 0, &[]).await
    }

    pub async fn trim(&mut self, offset: u64, len: u32) -> Result<(), u32> {
        self.request(0, 4, offset, len, &[]).await
    }

    pub async fn write_zeroes(&mut self, offset: u64, len: u32) -> Result<(), u32> {
        self.request(NO_HOLE | FAST_ZERO, 6, offset, len, &[]).await
    }
}
