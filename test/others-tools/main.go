// Verifies a checkpoint, and proofs, with Go's own golang.org/x/mod/sumdb. Reads what the test wrote to standard input.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type proof struct {
	Index int64       `json:"index"`
	Leaf  []byte      `json:"leaf"`
	Path  []tlog.Hash `json:"path"`
}

type input struct {
	Key         string      `json:"key"`
	Checkpoint  string      `json:"checkpoint"`
	Kept        string      `json:"kept"`
	Inclusion   []proof     `json:"inclusion"`
	Consistency []tlog.Hash `json:"consistency"`
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	os.Exit(1)
}

func open(text, key string) (int64, tlog.Hash) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		fail("key", err)
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		fail("checkpoint", err)
	}
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		fail("size", err)
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		fail("root", err)
	}
	return size, tlog.Hash(root)
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fail("input", err)
	}
	size, root := open(in.Checkpoint, in.Key)
	for _, one := range in.Inclusion {
		if err := tlog.CheckRecord(one.Path, size, root, one.Index, tlog.RecordHash(one.Leaf)); err != nil {
			fail(fmt.Sprintf("leaf %d", one.Index), err)
		}
	}
	before, beforeRoot := open(in.Kept, in.Key)
	if err := tlog.CheckTree(in.Consistency, size, root, before, beforeRoot); err != nil {
		fail("consistency", err)
	}
	fmt.Printf("%d leaves, consistent with %d\n", len(in.Inclusion), before)
}
