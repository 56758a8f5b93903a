-- For the library as it is built (tools/lua_lint.py, `make lua-lint`).
std = "lua51"
read_globals = { "redis", "struct" }
max_line_length = 130
