// Command app is the task of the end-to-end tests: static, so that the same file runs under exec and in any container.
// It prints one line for each thing that happens to it, and ends cleanly on SIGTERM.
//
//	app env                   prints its environment and ends
//	app show FILE...          prints each file, now and at each SIGHUP
//	app db [FILE]             connects to PostgreSQL as PG* of FILE or the environment say, again at each SIGHUP
//	app busy [FILE]           does the same, and connects every half second in between as it did last
//	app query                 connects once, as PG* of the environment say, and ends
//	app call VAR PATH N       calls the door that VAR names, N times a second; prints an answer that is another
//	app read PATH...          reads each path of the Vault that the environment names, now and at each SIGHUP
//	app look                  prints what it sees of the place that it runs in, again at each SIGHUP
//	app exit CODE [DURATION]  ends with CODE after DURATION
package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-envparse"
	_ "github.com/lib/pq" // The PostgreSQL driver; it takes PGHOST, PGPORT, PGUSER and the rest from the environment.
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: app env|show|db|busy|query|call|read|look|exit"))
	}
	fmt.Println("started", os.Args[1])
	switch args := os.Args[2:]; os.Args[1] {
	case "env":
		printEnv()
	case "show":
		serve(signals, func() error { return show(args) }, nil)
	case "db":
		serve(signals, func() error { return connect(args) }, nil)
	case "busy":
		serve(signals, func() error { return connect(args) }, ping)
	case "query":
		if err := connect(nil); err != nil {
			fail(err)
		}
	case "call":
		if err := call(signals, args); err != nil {
			fail(err)
		}
	case "read":
		serve(signals, func() error { return read(args) }, nil)
	case "look":
		serve(signals, look, nil)
	case "exit":
		exit(signals, args)
	default:
		fail(fmt.Errorf("unknown mode %q", os.Args[1]))
	}
}

// serve runs do now and at each SIGHUP, and between, unless it is nil, every half second, until another signal or an
// error ends the program.
func serve(signals <-chan os.Signal, do, between func() error) {
	var tick <-chan time.Time
	if between != nil {
		tick = time.Tick(500 * time.Millisecond)
	}
	next := do
	for {
		if err := next(); err != nil {
			fail(err)
		}
		select {
		case <-tick:
			next = between
		case s := <-signals:
			fmt.Println("signal", s)
			if s != syscall.SIGHUP {
				return
			}
			next = do
		}
	}
}

func printEnv() {
	env := os.Environ()
	slices.Sort(env)
	for _, kv := range env {
		fmt.Println(kv)
	}
}

func show(files []string) error {
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %q\n", name, b)
	}
	return nil
}

// connect reads the credentials and says as whom the server knows us.
func connect(files []string) error {
	for _, name := range files {
		if err := setEnv(name); err != nil {
			return err
		}
	}
	user, err := whoAmI()
	if err == nil {
		fmt.Println("connected as", user)
	}
	return err
}

// ping reports only what goes wrong.
func ping() error {
	_, err := whoAmI()
	return err
}

// whoAmI opens one connection, asks the server, and hangs up: what counts is that the credentials are accepted.
func whoAmI() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	db, err := sql.Open("postgres", "sslmode=disable dbname=postgres")
	if err != nil {
		return "", fmt.Errorf("open database: %w", err)
	}
	defer db.Close()
	var user string
	if err := db.QueryRowContext(ctx, "SELECT current_user").Scan(&user); err != nil {
		return "", fmt.Errorf("connect as %s: %w", os.Getenv("PGUSER"), err)
	}
	return user, nil
}

// setEnv sets what a KEY=value file names.
func setEnv(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	env, err := envparse.Parse(f)
	if err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	for k, v := range env {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

func exit(signals <-chan os.Signal, args []string) {
	if len(args) == 0 {
		fail(fmt.Errorf("exit: which code?"))
	}
	code, err := strconv.Atoi(args[0])
	if err != nil {
		fail(err)
	}
	var after time.Duration
	if len(args) > 1 {
		if after, err = time.ParseDuration(args[1]); err != nil {
			fail(err)
		}
	}
	select {
	case s := <-signals:
		fmt.Println("signal", s)
	case <-time.After(after):
		os.Exit(code)
	}
}

func fail(err error) {
	fmt.Println("error:", err)
	os.Exit(1)
}
