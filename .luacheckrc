-- For the scripts as they are built (tools/lua_lint.py, `make lua-lint`).
std = "lua51"
-- S and G: `commit` writes every structure of the cell; a script that never fills their lists does not declare them.
read_globals = { "redis", "struct", "KEYS", "ARGV", "S", "G" }
max_line_length = 130
-- An include may stand inside a function: its parameters shadow what is outside, and are meant to.
ignore = { "431", "432" }
