//! TUN devices in network namespaces.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::ioctl::{self, Opcode, Setter};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `TUNSETIFF`, of type `int` in the headers of Linux.
const TUNSETIFF: Opcode = ioctl::opcode::write::<i32>(b'T', 202);
const IFF_TUN: u16 = 0x0001;
/// Without it, a header precedes each packet.
const IFF_NO_PI: u16 = 0x1000;
const IFNAMSIZ: usize = 16;

/// The part of `struct ifreq` that `TUNSETIFF` reads, up to the length that it copies.
#[repr(C, align(8))]
#[derive(Debug)]
struct Request {
    name: [u8; IFNAMSIZ],
    flags: u16,
    padding: [u8; 22],
}

// The kernel copies that much from user space.
const _: () = assert!(size_of::<Request>() == 40);

/// A TUN device. Packets have no headers of the device, so that the kernel segments before.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Attaches to `NAMESPACE:DEVICE`, and leaves the thread in that namespace.
    pub(crate) fn open(place: &str) -> io::Result<Self> {
        let (namespace, device) = place
            .split_once(':')
            .ok_or_else(|| invalid("NAMESPACE:DEVICE is expected"))?;
        if device.is_empty() || device.len() >= IFNAMSIZ {
            return Err(invalid("no name of a device"));
        }
        let namespace = File::open(format!("/run/netns/{namespace}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/net/tun")?;
        let mut request = Request {
            name: [0; IFNAMSIZ],
            flags: IFF_TUN | IFF_NO_PI,
            padding: [0; 22],
        };
        request.name[..device.len()].copy_from_slice(device.as_bytes());
        attach(&file, request)?;
        Ok(Self { file })
    }

    /// Reads a packet, if there is one.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[allow(unsafe_code)]
fn attach(file: &File, request: Request) -> io::Result<()> {
    // SAFETY: the request has size and layout of a `struct ifreq`, which is what TUNSETIFF reads
    // and writes; the setter owns it until the call returns.
    unsafe { ioctl::ioctl(file, Setter::<TUNSETIFF, Request>::new(request)) }?;
    Ok(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
