//! Small kernel programs without a C toolchain: an assembler for eBPF, and the calls of bpf(2) that load and attach.
//!
//! Everything here is held by descriptors: when the last one is closed, which the kernel does for a process that is
//! killed too, maps, programs and their links to interfaces are gone.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::region::SharedWords;

// Numbers of linux/bpf.h and linux/if_link.h, which libc does not have.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;

/// One of the registers r0 to r10 (Documentation/bpf/standardization/instruction-set.rst): r0 takes results, r1 to r5
/// are arguments and lost in calls, r6 to r9 survive them, r10 is the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(dead_code, reason = "all of the machine's, whether or not a program needs them")]
pub(crate) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// What arithmetic and comparisons take as their second argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    /// A register.
    Register(Register),
    /// A constant, sign-extended to 64 bits.
    Constant(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(constant: i32) -> Self {
        Self::Constant(constant)
    }
}

/// Width of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Width {
    /// One byte.
    U8,
    /// Two bytes, in the machine's order.
    U16,
    /// Four bytes, in the machine's order.
    U32,
    /// Eight bytes, in the machine's order.
    U64,
}

impl Width {
    /// The size field of an opcode: BPF_B, BPF_H, BPF_W, BPF_DW.
    const fn bits(self) -> u8 {
        match self {
            Self::U32 => 0x00,
            Self::U16 => 0x08,
            Self::U8 => 0x10,
            Self::U64 => 0x18,
        }
    }
}

/// 64-bit arithmetic of a register and an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Alu {
    Add,
    And,
    ShiftLeft,
    ShiftRight,
    Move,
}

impl Alu {
    const fn bits(self) -> u8 {
        match self {
            Self::Add => 0x00,
            Self::And => 0x50,
            Self::ShiftLeft => 0x60,
            Self::ShiftRight => 0x70,
            Self::Move => 0xb0,
        }
    }
}

/// Unsigned comparisons of a register with an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    /// Some bit of the operand is set.
    AnyBit,
}

impl Condition {
    const fn bits(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::Greater => 0x20,
            Self::GreaterOrEqual => 0x30,
            Self::AnyBit => 0x40,
            Self::NotEqual => 0x50,
        }
    }
}

/// A place in a program to jump to, made by [`Assembler::label`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(usize);

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Low four bits: destination; high four: source.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

/// Builds a program, one method call per instruction.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    instructions: Vec<Instruction>,
    /// Index of the instruction that each label stands before.
    labels: Vec<Option<usize>>,
    /// Instructions whose offset is still to be set, with the label that they jump to.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label to jump to, placed later.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` before the next instruction.
    ///
    /// # Panics
    /// When it was placed before.
    pub(crate) fn place(&mut self, label: Label) {
        let before = self.labels[label.0].replace(self.instructions.len());
        assert!(before.is_none(), "label {} is placed twice", label.0);
    }

    /// `to = memory[at + offset]`.
    pub(crate) fn load(&mut self, width: Width, to: Register, at: Register, offset: i16) {
        // BPF_LDX | BPF_MEM
        self.push(0x61 | width.bits(), to, at as u8, offset, 0);
    }

    /// `memory[at + offset] += by`, atomically, of eight bytes.
    pub(crate) fn atomic_add(&mut self, at: Register, offset: i16, by: Register) {
        // BPF_STX | BPF_ATOMIC | BPF_DW with BPF_ADD as immediate.
        self.push(0xdb, at, by as u8, offset, 0);
    }

    /// `to = to (operation) operand`.
    pub(crate) fn alu(&mut self, operation: Alu, to: Register, operand: impl Into<Operand>) {
        // BPF_ALU64
        self.with_operand(0x07 | operation.bits(), to, operand.into(), 0);
    }

    /// Goes on at `label` if the comparison of all 64 bits holds.
    pub(crate) fn jump_if(
        &mut self,
        left: Register,
        condition: Condition,
        right: impl Into<Operand>,
        label: Label,
    ) {
        self.jumps.push((self.instructions.len(), label));
        // BPF_JMP
        self.with_operand(0x05 | condition.bits(), left, right.into(), 0);
    }

    /// Goes on at `label` if the comparison of the low 32 bits holds.
    pub(crate) fn jump_if_u32(&mut self, left: Register, condition: Condition, right: u32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        // BPF_JMP32
        self.with_operand(0x06 | condition.bits(), left, Operand::Constant(right.cast_signed()), 0);
    }

    /// Goes on at `label`.
    pub(crate) fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        // BPF_JMP | BPF_JA
        self.push(0x05, Register::R0, 0, 0, 0);
    }

    /// Calls a kernel helper by its number in linux/bpf.h; r1 to r5 are its arguments, r0 its result.
    pub(crate) fn call(&mut self, helper: i32) {
        self.push(0x85, Register::R0, 0, 0, helper);
    }

    /// Ends the program with r0 as its verdict.
    pub(crate) fn exit(&mut self) {
        self.push(0x95, Register::R0, 0, 0, 0);
    }

    /// `to =` the map itself, as helpers take it.
    pub(crate) fn load_map(&mut self, to: Register, map: &XskMap) {
        self.load_pseudo(to, BPF_PSEUDO_MAP_FD, map.fd.as_fd());
    }

    /// `to =` the address of the first byte of the only value of `map`.
    pub(crate) fn load_words(&mut self, to: Register, map: &WordsMap) {
        self.load_pseudo(to, BPF_PSEUDO_MAP_VALUE, map.fd.as_fd());
    }

    /// BPF_LD | BPF_IMM | BPF_DW: the one instruction that takes two places.
    fn load_pseudo(&mut self, to: Register, kind: u8, map: BorrowedFd<'_>) {
        self.push(0x18, to, kind, 0, map.as_raw_fd());
        self.push(0, Register::R0, 0, 0, 0);
    }

    fn with_operand(&mut self, code: u8, to: Register, operand: Operand, offset: i16) {
        match operand {
            // BPF_X
            Operand::Register(from) => self.push(code | 0x08, to, from as u8, offset, 0),
            // BPF_K
            Operand::Constant(constant) => self.push(code, to, 0, offset, constant),
        }
    }

    fn push(&mut self, code: u8, destination: Register, source: u8, offset: i16, immediate: i32) {
        let registers = destination as u8 | source << 4;
        self.instructions.push(Instruction { code, registers, offset, immediate });
    }

    /// The program, with all jumps resolved.
    fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            let to = self.labels[label.0].expect("every label that is jumped to is placed");
            let distance = to as isize - from as isize - 1;
            self.instructions[from].offset = i16::try_from(distance).expect("programs are short");
        }
        self.instructions
    }
}

/// Words that a program and this process share: a map with one value, mapped into the process.
#[derive(Debug)]
pub(crate) struct WordsMap {
    fd: OwnedFd,
    words: SharedWords,
}

impl WordsMap {
    /// `count` zeroed words.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF; else as bpf(2) and mmap(2).
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let value_len = u32::try_from(count * 8).map_err(|_| io::ErrorKind::InvalidInput)?;
        // One value holds them all: only then may a program address them without a helper
        // (`array_map_direct_value_addr`, kernel/bpf/arraymap.c).
        let fd = create_map(BPF_MAP_TYPE_ARRAY, value_len, 1, BPF_F_MMAPABLE)?;
        let words = SharedWords::of_fd(fd.as_fd(), count)?;
        Ok(Self { fd, words })
    }

    /// The words.
    #[must_use]
    pub(crate) fn words(&self) -> &SharedWords {
        &self.words
    }
}

/// The AF_XDP sockets of an interface by queue, for `bpf_redirect_map`.
#[derive(Debug)]
pub(crate) struct XskMap {
    fd: OwnedFd,
}

impl XskMap {
    /// A map for the queues `0..queues`.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF and CAP_NET_ADMIN; else as bpf(2).
    pub(crate) fn new(queues: u32) -> io::Result<Self> {
        create_map(BPF_MAP_TYPE_XSKMAP, 4, queues, 0).map(|fd| Self { fd })
    }

    /// Has redirected frames of `queue` go to `socket`, until either is closed.
    ///
    /// # Errors
    /// As bpf(2): `E2BIG` for a queue outside of the map.
    pub(crate) fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd().cast_unsigned();
        let mut attributes = UpdateAttributes {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: &raw const queue as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: key and value point to 4 bytes each, as the map was created with, and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }?;
        Ok(())
    }
}

fn create_map(kind: u32, value_len: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes =
        MapAttributes { map_type: kind, key_len: 4, value_len, entries, flags, ..MapAttributes::default() };
    attributes.name[..8].copy_from_slice(b"linerate");
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: BPF_MAP_CREATE returns a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where a program may be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgramKind {
    /// Before the network stack sees a frame; context is `struct xdp_md`.
    Xdp,
    /// At the entry to the stack, after packet sockets had their copy; context is `struct __sk_buff`.
    TcxIngress,
}

/// A program that the kernel has verified.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Hands a program to the kernel.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF (and CAP_NET_ADMIN); what the verifier objects to, with its log, which means that the
    /// program is wrong or the kernel too old for it.
    pub(crate) fn load(kind: ProgramKind, assembler: Assembler, license: &CStr) -> io::Result<Self> {
        let instructions = assembler.finish();
        match Self::try_load(kind, &instructions, license, &mut []) {
            Err(error) if error.raw_os_error() != Some(libc::EPERM) => {
                // Writing the log costs time, so it is asked for only when there is something to read in it.
                let mut log = vec![0; 64 << 10];
                let again = Self::try_load(kind, &instructions, license, &mut log);
                let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
                again.map_err(|_| {
                    io::Error::new(
                        error.kind(),
                        format!("the kernel refused a program: {error}: {}", text.trim()),
                    )
                })
            }
            other => other,
        }
    }

    fn try_load(
        kind: ProgramKind,
        instructions: &[Instruction],
        license: &CStr,
        log: &mut [u8],
    ) -> io::Result<Self> {
        let (prog_type, expected_attach_type) = match kind {
            ProgramKind::Xdp => (BPF_PROG_TYPE_XDP, BPF_XDP),
            ProgramKind::TcxIngress => (BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_INGRESS),
        };
        let mut attributes = ProgramAttributes {
            prog_type,
            instructions_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_len: log.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            expected_attach_type,
            ..ProgramAttributes::default()
        };
        attributes.name[..8].copy_from_slice(b"linerate");
        // SAFETY: the pointers are to as many instructions as said, a string that ends in a zero, and a buffer of the
        // length given that only this function holds; all outlive the call.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
        // SAFETY: BPF_PROG_LOAD returns a new descriptor, which nobody else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

/// How and where a program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// XDP in the driver, before there is an skb.
    XdpNative,
    /// XDP on skbs, with any driver.
    XdpGeneric,
    /// [`ProgramKind::TcxIngress`].
    TcxIngress,
}

/// A program at an interface. Dropping it takes the program away, and so does the death of the process.
#[derive(Debug)]
pub(crate) struct Link {
    _fd: OwnedFd,
}

impl Link {
    /// Attaches `program` to the interface with the given index.
    ///
    /// # Errors
    /// `EBUSY` when the interface has an XDP program already, as one sentence with `interface`; `EOPNOTSUPP` or
    /// `EINVAL` where the driver or the kernel can not do it (TCX needs Linux 6.6); else as bpf(2).
    pub(crate) fn attach(program: &Program, interface: &str, index: u32, hook: Hook) -> io::Result<Self> {
        let (attach_type, flags) = match hook {
            Hook::XdpNative => (BPF_XDP, XDP_FLAGS_DRV_MODE),
            Hook::XdpGeneric => (BPF_XDP, XDP_FLAGS_SKB_MODE),
            Hook::TcxIngress => (BPF_TCX_INGRESS, 0),
        };
        let mut attributes = LinkAttributes {
            program_fd: program.fd.as_raw_fd().cast_unsigned(),
            interface_index: index,
            attach_type,
            flags,
            ..LinkAttributes::default()
        };
        // SAFETY: the attributes hold no pointers.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }
            .map_err(|error| attach_error(interface, error))?;
        // SAFETY: BPF_LINK_CREATE returns a new descriptor, which nobody else owns.
        Ok(Self { _fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

fn attach_error(interface: &str, error: io::Error) -> io::Error {
    // EEXIST: a program in the other one of native and generic mode (`dev_xdp_attach`, net/core/dev.c).
    if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
        return error;
    }
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!(
            "another XDP program is attached to {interface}: stop the process that put it there; one that no process holds \
             goes with `ip link set dev {interface} xdp off`, or `xdpgeneric off`"
        ),
    )
}

/// The part of `union bpf_attr` that BPF_MAP_CREATE reads, up to the name.
#[derive(Default)]
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// The same for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct UpdateAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for BPF_PROG_LOAD, up to the attach type.
#[derive(Default)]
#[repr(C)]
struct ProgramAttributes {
    prog_type: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface_index: u32,
    expected_attach_type: u32,
}

/// The same for BPF_LINK_CREATE; the rest, zero, is the position among other TCX programs.
#[derive(Default)]
#[repr(C)]
struct LinkAttributes {
    program_fd: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 2],
}

/// bpf(2).
///
/// # Safety
/// `attributes` must be what `command` expects: a `repr(C)` prefix of `union bpf_attr`, any pointers in which are valid
/// for the lengths given with them and the accesses that the command makes.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for the content; the kernel reads no more bytes than the length says, takes those that
    // it does not get as zero, and writes back only into known fields.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
impl Program {
    /// Runs the program on a frame, without any interface (BPF_PROG_RUN), and returns its verdict.
    pub(crate) fn run(&self, frame: &[u8]) -> io::Result<u32> {
        const BPF_PROG_RUN: libc::c_int = 10;
        /// The part of `union bpf_attr` that the command reads, up to the duration.
        #[repr(C)]
        struct RunAttributes {
            program_fd: u32,
            verdict: u32,
            frame_len: u32,
            out_len: u32,
            frame: u64,
            out: u64,
            repeat: u32,
            duration_ns: u32,
        }
        let mut attributes = RunAttributes {
            program_fd: self.fd.as_raw_fd().cast_unsigned(),
            verdict: 0,
            frame_len: frame.len() as u32,
            out_len: 0,
            frame: frame.as_ptr() as u64,
            out: 0,
            repeat: 1,
            duration_ns: 0,
        };
        // SAFETY: the frame is as long as said and only read; the length of the output is 0.
        unsafe { bpf(BPF_PROG_RUN, &mut attributes) }?;
        Ok(attributes.verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::rings_testing::or_say;

    /// Goal: what is assembled is what runs. Method: a program with arithmetic, jumps forward over placed code, a
    /// shared word that it adds to and one that it reads, run by the kernel without an interface.
    #[test]
    fn a_program_computes_jumps_and_shares_words() {
        let Some(map) = or_say("a program", WordsMap::new(3)) else { return };
        for kind in [ProgramKind::Xdp, ProgramKind::TcxIngress] {
            let mut program = Assembler::default();
            let (wrong, end) = (program.label(), program.label());
            program.alu(Alu::Move, Register::R0, 40);
            program.alu(Alu::Move, Register::R2, 0x1234);
            program.alu(Alu::ShiftLeft, Register::R2, 4);
            program.jump_if(Register::R2, Condition::NotEqual, 0x1_2340, wrong);
            program.jump_if_u32(Register::R2, Condition::Greater, 0x8000_0000, wrong);
            program.load_words(Register::R3, &map);
            program.alu(Alu::Move, Register::R4, 2);
            program.atomic_add(Register::R3, 16, Register::R4);
            program.load(Width::U64, Register::R5, Register::R3, 8);
            program.alu(Alu::Add, Register::R0, Register::R5);
            program.jump(end);
            program.place(wrong);
            program.alu(Alu::Move, Register::R0, 1);
            program.place(end);
            program.exit();
            let program = Program::load(kind, program, c"MIT").unwrap();
            map.words()[2].store(100, Relaxed);
            for added in [0, 3, 5] {
                map.words()[1].store(added, Relaxed);
                assert_eq!(program.run(&[0; 60]).unwrap(), 40 + added as u32, "{kind:?}");
            }
            assert_eq!(map.words()[2].load(Relaxed), 106, "{kind:?}");
        }
    }

    /// Goal: a refusal says what the verifier dislikes. Method: a program that reads a register it never set.
    #[test]
    fn the_verifiers_reason_is_told() {
        let mut program = Assembler::default();
        program.alu(Alu::Move, Register::R0, Register::R7);
        program.exit();
        let loaded = Program::load(ProgramKind::Xdp, program, c"MIT");
        if loaded.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
            return assert!(or_say("a program", loaded).is_none());
        }
        let error = loaded.unwrap_err().to_string();
        assert!(error.contains("R7 !read_ok"), "{error}");
    }

    #[test]
    fn a_refused_attachment_names_interface_and_remedy() {
        let error = attach_error("veth0", io::Error::from_raw_os_error(libc::EBUSY));
        assert!(error.to_string().contains("ip link set dev veth0 xdp off"), "{error}");
        let other = attach_error("veth0", io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!(other.raw_os_error(), Some(libc::ENODEV));
    }
}
