package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// look prints what a process sees of the place that it runs in, a line "fact <key>\t<quoted value>" for each thing.
func look() error {
	for _, look := range []func() error{lookAtProcess, lookAtInterfaces, lookAtStatus, lookAtLimits,
		lookAtMounts, lookAtFiles, lookAtDescriptors} {
		if err := look(); err != nil {
			return err
		}
	}
	fmt.Println("looked")
	return nil
}

func fact(key string, value any) { fmt.Printf("fact %s\t%q\n", key, fmt.Sprint(value)) }

func lookAtProcess() error {
	for i, arg := range os.Args {
		fact(fmt.Sprint("arg ", i), arg)
	}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		fact("env "+name, value)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	nice, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return err
	}
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	group, err := syscall.Getpgid(0)
	if err != nil {
		return err
	}
	fact("directory", dir)
	fact("hostname", host)
	fact("uid", os.Getuid())
	fact("gid", os.Getgid())
	fact("groups", groups)
	fact("priority", nice)
	fact("umask", fmt.Sprintf("%04o", umask))
	fact("leads its process group", group == os.Getpid())
	fact("is pid 1", os.Getpid() == 1)
	return nil
}

func lookAtInterfaces() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, link := range links {
		if regexp.MustCompile("^(veth|docker|nomad)").MatchString(link.Name) { // They come and go with other tasks.
			continue
		}
		fact("interface "+link.Name, link.Flags)
	}
	return nil
}

// lookAtStatus shows what the kernel says of the process, but for what the Go runtime sets itself and what counts.
func lookAtStatus() error {
	return eachLine("/proc/self/status", func(line string) {
		name, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
			"SigIgn", "Cpus_allowed"}, name) {
			fact("status "+name, strings.TrimSpace(value))
		}
	})
}

// lookAtLimits leaves out the soft limit of open files, which the Go runtime raises.
func lookAtLimits() error {
	err := eachLine("/proc/self/limits", func(line string) {
		if len(line) > 68 && !strings.HasPrefix(line, "Limit") {
			soft, hard := strings.TrimSpace(line[26:46]), strings.TrimSpace(line[47:67])
			name := strings.TrimSpace(line[:26])
			if name == "Max open files" {
				soft = "-"
			}
			fact("limit "+name, soft+" "+hard)
		}
	})
	if err != nil {
		return err
	}
	return eachLine("/proc/self/oom_score_adj", func(line string) { fact("oom_score_adj", line) })
}

// lookAtMounts shows each mount point with its type and options (proc_pid_mountinfo(5)).
func lookAtMounts() error {
	return eachLine("/proc/self/mountinfo", func(line string) {
		mount, super, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		fact("mount "+fields[4], strings.Fields(super)[0]+" "+fields[5])
	})
}

// lookAtFiles shows owner and mode of what is in the root directory and of what a task uses, and what resolves names.
func lookAtFiles() error {
	names := []string{"/dev/shm", "/dev/null", "/alloc/data", "/alloc/logs", "/alloc/tmp", os.Getenv("NOMAD_TASK_DIR"),
		os.Getenv("NOMAD_SECRETS_DIR"), os.Getenv("NOMAD_ALLOC_DIR"), "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}
	top, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range top {
		names = append(names, "/"+entry.Name())
	}
	for _, name := range names {
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			fact("file "+name, err)
			continue
		}
		fact("file "+name, fmt.Sprintf("%06o %d:%d", st.Mode, st.Uid, st.Gid))
	}
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		content, err := os.ReadFile(name)
		if err != nil {
			content = []byte(err.Error())
		}
		fact("content of "+name, string(content))
	}
	return nil
}

// lookAtDescriptors shows of what kind the open files are that the process was given.
func lookAtDescriptors() error {
	for _, n := range []string{"0", "1", "2"} {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", n))
		if err != nil {
			return err
		}
		kind, _, numbered := strings.Cut(target, ":[")
		if !numbered {
			kind = target
		}
		fact("descriptor "+n, kind)
	}
	others, err := filepath.Glob("/proc/[0-9]*")
	fact("sees only itself and its children", len(others) < 5)
	return err
}

func eachLine(name string, do func(line string)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		do(lines.Text())
	}
	return lines.Err()
}
