package session

// NoticeKind says what a Notice is about.
type NoticeKind int

const (
	// Outage means that Vault cannot be reached, or not all of it; the last known good values stay in use.
	Outage NoticeKind = iota
	// Recovered means that all that failed since an Outage works again.
	Recovered
	// Problem means that one secret or the token cannot be kept current; the text says which and why. It is sent once,
	// until what failed succeeds.
	Problem
	// Replaced means that the token was lost and a new one is in its place.
	Replaced
	// Waiting means that Open, or a reading that has nothing else to show, waits for Vault.
	Waiting
	// Dead means that a lease or the token ended while Vault could not be asked, so what the task has of it no longer
	// works; the text says since when, and what happens next.
	Dead
	// Broken means that a fault of ours ended the upkeep of the session, and the agent's log has the stack. The task
	// cannot go on with it.
	Broken
)

// Notice is something the operator should read about a session, on one line. The text never holds a secret.
type Notice struct {
	Kind NoticeKind
	Text string
}
