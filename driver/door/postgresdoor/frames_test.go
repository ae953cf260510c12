package postgresdoor

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shoenig/test/must"
)

// frame is a frame of a kind, with a body.
func frame(kind byte, body string) string {
	n := len(body) + 4
	return string([]byte{kind, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
}

// TestIdle plays what client and server say, and asks after each whether the session is idle.
func TestIdle(t *testing.T) {
	const client, server = true, false
	type step struct {
		client bool
		bytes  string
		idle   bool
	}
	q, sync := frame('Q', "SELECT 1\x00"), frame('S', "")
	parse, bind, execute := frame('P', "\x00SELECT\x00\x00\x00"), frame('B', "\x00\x00"), frame('E', "\x00\x00")
	readyIdle, readyInside, readyFailed := frame('Z', "I"), frame('Z', "T"), frame('Z', "E")
	row := frame('D', "12345")
	for name, steps := range map[string][]step{
		"nothing yet":       {{client, "", true}},
		"a query":           {{client, q, false}, {server, row, false}, {server, readyIdle, true}},
		"half of a query":   {{client, q[:7], false}, {client, q[7:], false}, {server, readyIdle, true}},
		"half of a header":  {{client, q[:1], false}},
		"half of an answer": {{client, q, false}, {server, readyIdle[:5], false}, {server, readyIdle[5:], true}},
		"a transaction": {{client, q, false}, {server, readyInside, false}, {client, q, false},
			{server, readyIdle, true}},
		"a failed one": {{client, q, false}, {server, readyFailed, false}, {client, q, false},
			{server, readyIdle, true}},
		"two queries at once": {{client, q + q, false}, {server, readyIdle, false}, {server, readyIdle, true}},
		"a pipeline": {{client, parse + bind + execute, false}, {client, sync, false}, {client, parse + sync, false},
			{server, readyIdle, false}, {server, readyIdle, true}},
		"a Parse without a Sync": {{client, parse, false}, {server, frame('1', ""), false}, {client, sync, false},
			{server, readyIdle, true}},
		"what a server says unasked": {{server, frame('N', "x") + frame('A', "y") + frame('S', "z"), true}},
		"half of that":               {{server, frame('N', "xyz")[:6], false}},
		"a copy to the server": {{client, q, false}, {server, frame('G', "\x00\x00\x00"), false},
			{client, frame('d', "1\n"), false}, {client, frame('c', ""), false}, {server, readyIdle, true}},
		// libpq sends a Sync with the query, which the server reads in the copy and ignores, and one after the copy.
		"a copy by the extended protocol": {{client, parse + bind + execute + sync, false},
			{server, frame('G', "\x00\x00\x00"), false}, {client, frame('d', "1\n"), false},
			{client, frame('c', "") + sync, false}, {server, readyIdle, true}},
		"the same, sent at once": {{client, parse + bind + execute + sync + frame('d', "1\n") + frame('c', "") + sync, false},
			{server, frame('G', "\x00\x00\x00"), false}, {server, readyIdle, true}},
		"a copy that the server refuses": {{client, parse + bind + execute + sync, false}, {server, frame('E', "x"), false},
			{server, readyIdle, true}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 3, 1 << 20} {
				f := frames{state: 'I'}
				for i, s := range steps {
					for chunk := range chunks(s.bytes, size) {
						walk := f.fromServer
						if s.client {
							walk = f.fromClient
						}
						must.NoError(t, walk(chunk))
					}
					must.Eq(t, s.idle, f.idle(), must.Sprintf("step %d in pieces of %d", i, size))
				}
			}
		})
	}
}

func chunks(s string, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(s) > 0 {
			n := min(size, len(s))
			if !yield([]byte(s[:n])) {
				return
			}
			s = s[n:]
		}
	}
}

func TestLengthThatCannotBe(t *testing.T) {
	for name, in := range map[string]string{"too short": "Q\x00\x00\x00\x03", "negative": "Q\xff\xff\xff\xff"} {
		t.Run(name, func(t *testing.T) {
			var f frames
			must.ErrorIs(t, f.fromClient([]byte(in)), errFrame)
			must.ErrorIs(t, f.fromServer([]byte(in)), errFrame)
		})
	}
}

// FuzzFrames compares the walker with pgproto3, which reads each frame whole, and with itself on other pieces.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame('Z', "I")+frame('D', "abc")+frame('Z', "T")), 3)
	f.Add([]byte(frame('G', "")+frame('Z', "")+frame('E', "S\x00")), 1)
	f.Add([]byte("Z\x00\x00\x00\x03"), 2)
	f.Add([]byte(frame('Q', "SELECT 1\x00")+frame('S', "")+frame('P', "")), 7)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 1 || len(in) > 1<<16 {
			return
		}
		whole, pieces := frames{state: 'I'}, frames{state: 'I'}
		errWhole := whole.fromServer(in)
		var errPieces error
		for chunk := range chunks(string(in), size) {
			if errPieces = pieces.fromServer(chunk); errPieces != nil {
				break
			}
		}
		must.Eq(t, errWhole, errPieces)
		if errWhole != nil {
			return
		}
		must.Eq(t, whole.idle(), pieces.idle())
		must.Eq(t, whole.state, pieces.state)
		reader := pgproto3.NewFrontend(bytes.NewReader(in), nil)
		reader.SetMaxBodyLen(len(in) + 1) // it makes room before it reads
		var state byte = 'I'
		for {
			m, err := reader.Receive()
			if err != nil {
				break
			}
			if r, ok := m.(*pgproto3.ReadyForQuery); ok {
				state = r.TxStatus
			}
		}
		if whole.server.between() && onlyKnown(in) {
			must.Eq(t, state, whole.state)
		}
		client := frames{state: 'I'}
		_ = client.fromClient(in)
	})
}

// onlyKnown reports whether all frames are ReadyForQuery as PostgreSQL sends it.
func onlyKnown(in []byte) bool {
	for ; len(in) >= 6; in = in[6:] {
		if !bytes.HasPrefix(in, []byte("Z\x00\x00\x00\x05")) {
			return false
		}
	}
	return len(in) == 0
}
