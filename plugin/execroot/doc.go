// Package execroot builds the root file system of an exec task out of read-only mounts of the host's directories.
// Nomad's own exec links or copies every file of the host's /usr and /etc into each task's directory, which takes
// seconds. Here the executor mounts the same directories, in the task's own mount namespace, which takes
// milliseconds.
//
// Seen from the task, three things differ from Nomad's chroot. Host directories cannot be written to, not even by
// root. They show the host as it is now, not as it was when the task started. And their files have no owner, so that
// a task reads what everyone may read, and a set-user-ID program is a program like any other.
//
// # Threats
//
// The task and the author of its job are not trusted. The task may run as root, has group 0, and has the capabilities
// that Nomad's exec gives it, among them CAP_DAC_OVERRIDE and CAP_SETUID. It writes to its own directory and to the
// directory that its allocation shares, while it runs and through other tasks of the allocation at any time. The
// job's author chooses the command, the volumes and the DNS servers. The plugin and Nomad's executor are root,
// outside of the task's root.
//
// What the package keeps a task from, and where:
//
//   - It reads no host file that is not readable by everyone: the mounts are idmapped (idmap.go).
//   - It changes nothing of the host: the mounts are read-only, and so are those of the host's mount points below them.
//   - It does not have the executor open another file than the one that is its command, or make one of the host's files
//     executable (command.go).
//   - It cannot put a link in the place of what root opens by name, its executor's log, the allocation's logs and the
//     container library's directory: these are mounts in its root, which no capability removes or renames (layout.go).
//   - It does not lead the plugin out of its directory by a link: everything is looked up below an os.Root.
//   - It costs others nothing: a task has a bounded number of mounts (layout.go).
//
// What it does not keep a task from: to read what everyone on the host may read below the operator's paths, and to
// read the single files that the operator has named there, whatever their mode. With the host's processes in view
// (pid_mode = "host") a task reaches the host's own root; the wrapped driver refuses that. With filesystem = "chroot"
// none of this applies.
//
// It takes Linux 5.12 and file systems that support idmapped mounts.
package execroot
