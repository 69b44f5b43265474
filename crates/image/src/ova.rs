//! Writing an OVA.
//!
//! ```text
//!  vm.ovf │ disk 1 │ disk 2 │ … │ vm.mf │ more │ two blocks of zeros
//!    first, padded with spaces    digests of all, known last
//! ```
//!
//! A tar header states the size of what follows, and the descriptor in front states the sizes of
//! the disks: both are known when the disks were written. A sink that can seek is patched at the
//! end; for any other sink the disks are measured by a first pass, and the
//! second one states what the first one found. The content is the same either way.

use std::io::{Seek, SeekFrom, Write};

use crate::ovf::{Machine, Manifest, Sum, render};
use crate::{Error, Result, tar};

/// Room for the descriptor; sizes of disks do not change how much is taken.
const DESCRIPTOR_ROOM: usize = 16 << 10;

/// Writes the files of an archive one after another.
#[derive(Debug)]
pub struct OvaWriter<W> {
    sink: W,
    stem: String,
    position: u64,
    manifest: Manifest,
    /// Headers that were written with a size that was not known: where, the name, the size.
    late: Vec<(u64, String, u64)>,
    room: u64,
}

/// A file of the archive that is being written.
#[derive(Debug)]
pub struct Member<'a, W> {
    writer: &'a mut OvaWriter<W>,
    name: String,
    header: u64,
    stated: Option<u64>,
    size: u64,
    sum: Sum,
}

impl<W: Write> OvaWriter<W> {
    /// Begins an archive with the descriptor, as far as the machine is known. `stem` names the
    /// descriptor and the manifest.
    ///
    /// # Errors
    /// What the sink says, and names that no archive can hold.
    pub fn begin(sink: W, stem: &str, machine: &Machine) -> Result<Self> {
        let room = room(machine);
        let mut writer = Self {
            sink,
            stem: stem.into(),
            position: 0,
            manifest: Manifest::default(),
            late: Vec::new(),
            room: room as u64,
        };
        let front = front(stem, machine, room)?;
        writer.put(&front)?;
        Ok(writer)
    }

    /// Begins a file; `size` as far as it is known.
    ///
    /// # Errors
    /// As [`OvaWriter::begin`].
    pub fn member(&mut self, name: &str, size: Option<u64>) -> Result<Member<'_, W>> {
        let header = self.position;
        self.put(&tar::header(name, size.unwrap_or(0))?)?;
        Ok(Member { writer: self, name: name.into(), header, stated: size, size: 0, sum: Sum::default() })
    }

    /// Adds a small file whose content is at hand.
    ///
    /// # Errors
    /// As [`OvaWriter::begin`].
    pub fn add(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut member = self.member(name, Some(content.len() as u64))?;
        member.write_all(content).map_err(Error::write("files of the archive"))?;
        member.finish().map(|_| ())
    }

    /// Hands everything to the sink.
    ///
    /// # Errors
    /// What the sink says.
    pub fn flush(&mut self) -> Result<()> {
        self.sink.flush().map_err(Error::write("files of the archive"))
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes the manifest, `more` files behind it, and the end. `machine` is what the descriptor
    /// states; it must fit into the room of the one that the archive began with.
    ///
    /// # Errors
    /// What the sink says.
    pub fn finish(mut self, machine: &Machine, more: &[(&str, &[u8])]) -> Result<Finished<W>> {
        let front = front(&self.stem, machine, usize::try_from(self.room).unwrap_or(usize::MAX))?;
        let text = front.get(512..512 + usize::try_from(self.room).unwrap_or(0)).unwrap_or_default();
        let mut manifest = Manifest::default();
        manifest.add(&format!("{}.ovf", self.stem), Sum::of(text));
        for (name, content) in more {
            self.manifest.add(name, Sum::of(content));
        }
        manifest.lines.append(&mut self.manifest.lines);
        let name = format!("{}.mf", self.stem);
        self.add(&name, manifest.render().as_bytes())?;
        for (name, content) in more {
            self.add(name, content)?;
        }
        self.put(&[0; 1024])?;
        self.sink.flush().map_err(Error::write("end of the archive"))?;
        Ok(Finished { sink: self.sink, front, late: self.late, length: self.position, manifest })
    }

    fn put(&mut self, data: &[u8]) -> Result<()> {
        self.sink.write_all(data).map_err(Error::write("files of the archive"))?;
        self.position += data.len() as u64;
        Ok(())
    }
}

/// An archive whose content is written.
#[derive(Debug)]
pub struct Finished<W> {
    sink: W,
    front: Vec<u8>,
    late: Vec<(u64, String, u64)>,
    /// The length of the archive in bytes.
    pub length: u64,
    /// The digests of its files.
    pub manifest: Manifest,
}

impl<W> Finished<W> {
    /// Whether nothing is left to be patched but what the archive began with.
    pub fn is_whole(&self) -> bool {
        self.late.is_empty()
    }
}

impl<W: Write + Seek> Finished<W> {
    /// States the sizes that were not known when the headers and the descriptor were written.
    ///
    /// # Errors
    /// What the sink says.
    pub fn patch(mut self) -> Result<W> {
        let what = "headers of the archive";
        for (at, name, size) in &self.late {
            self.sink.seek(SeekFrom::Start(*at)).map_err(Error::write(what))?;
            self.sink.write_all(&tar::header(name, *size)?).map_err(Error::write(what))?;
        }
        // The descriptor last: without it there is no OVA.
        self.sink.seek(SeekFrom::Start(0)).map_err(Error::write(what))?;
        self.sink.write_all(&self.front).map_err(Error::write(what))?;
        self.sink.flush().map_err(Error::write(what))?;
        Ok(self.sink)
    }
}

impl<W: Write + Seek> Member<'_, W> {
    /// Takes over what an earlier run wrote at this place: the bytes count, and are not written again.
    ///
    /// # Errors
    /// What the sink says.
    pub fn adopt(&mut self, data: &[u8]) -> Result<()> {
        let step = i64::try_from(data.len()).unwrap_or(i64::MAX);
        self.writer.sink.seek(SeekFrom::Current(step)).map_err(Error::write("files of the archive"))?;
        self.sum.update(data);
        self.size += data.len() as u64;
        self.writer.position += data.len() as u64;
        Ok(())
    }
}

impl<W: Write> Member<'_, W> {
    /// Where the file's content begins in the archive, in bytes.
    pub fn start(&self) -> u64 {
        self.header + tar::BLOCK
    }

    /// Pads the file to a block; answers its size and its SHA-256.
    ///
    /// # Errors
    /// When it has not the size that its header states.
    pub fn finish(self) -> Result<(u64, String)> {
        let Self { writer, name, header, stated, size, sum } = self;
        let gap = usize::try_from(tar::padding(size)).unwrap_or(0);
        writer.put(&vec![0; gap])?;
        match stated {
            Some(stated) if stated != size => {
                let why = format!(
                    "`{name}` has {size} bytes and not the {stated} that were measured: the source changed"
                );
                return Err(Error::Unsupported { format: "OVA", why });
            }
            Some(_) => {}
            None => writer.late.push((header, name.clone(), size)),
        }
        let digest = sum.hex();
        // The manifest itself is not in the manifest, nor is what stands behind it: that was added.
        if !writer.manifest.lines.iter().any(|line| line.1 == name) && name != format!("{}.mf", writer.stem) {
            writer.manifest.add(&name, digest.clone());
        }
        Ok((size, digest))
    }
}

impl<W: Write> Write for Member<'_, W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.writer.sink.write(data)?;
        self.sum.update(data.get(..written).unwrap_or_default());
        self.size += written as u64;
        self.writer.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.sink.flush()
    }
}

/// Bytes kept for the descriptor of a machine: every number may still grow to 20 digits.
fn room(machine: &Machine) -> usize {
    let text = render(machine).len() + machine.disks.len() * 128;
    text.next_multiple_of(DESCRIPTOR_ROOM)
}

/// The header of the descriptor and the descriptor, padded with spaces: white space behind the
/// root element means nothing in XML, and the same room is taken whatever the sizes.
fn front(stem: &str, machine: &Machine, room: usize) -> Result<Vec<u8>> {
    let mut text = render(machine).into_bytes();
    if text.len() > room {
        let why = "its descriptor outgrew the room that was kept for it".into();
        return Err(Error::Unsupported { format: "OVA", why });
    }
    text.resize(room - 1, b' ');
    text.push(b'\n');
    let mut out = tar::header(&format!("{stem}.ovf"), room as u64)?.to_vec();
    out.append(&mut text);
    Ok(out)
}
