# Every target is one line; what it does is told by the script it calls.
.PHONY: setup demo test lint bench fuzz

setup:
	@tools/setup test

demo:
	@tools/setup demo
	@tools/demo

test:
	@tools/setup test
	@tools/test

lint:
	@tools/setup test
	@tools/lint

bench:
	@tools/setup bench
	@.venv/bin/python -m bench

fuzz:
	@tools/setup test
	@tools/fuzz
