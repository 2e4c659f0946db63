"""The Lua that runs inside Prosody: a prelude sent once a connection, and one short line for each operation.

The prelude defines its functions in the environment of the one admin session that sent it: nothing of Prosody's own
is replaced, and they are gone with the connection. An operation is then a call of one of them, and its arguments are
base64 of JSON: no value is ever a part of the code. Prosody runs a line to its end before it does anything else, so
whatever one operation checks and changes is one step.

What every operation keeps to, so that a Prosody that is killed in the middle leaves nothing that a repeat cannot mend:

- All is checked before anything is written, and ``wrote`` tells which of the two a failure met.
- The row in the inviting user's own map is written before the row of the host, which is what a repeat looks at.
- A storage that rewrites its whole file at each change (what Prosody calls a shim) is read once and written once.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CONTACT_STORE", "NEVER_EXPIRES", "PRELUDE"]

NEVER_EXPIRES: Final = 253402300799
"""What stands for "never" in a row: the last second of the year 9999. A row without a time is an error to Prosody."""

CONTACT_STORE: Final = "invites_api_contact"
"""The store of invites that only add a contact: a row among Prosody's own would let strangers register with it."""

MAX_REDEMPTIONS: Final = 1_000
"""How many redemptions a row holds: it is written anew at each."""

# Its lines are joined by spaces, so there is no comment in it.
_PRELUDE: Final = (
    """
invites_api = (function()
local json, base64 = require "util.json", require "util.encodings".base64;
local sha256, jid_node = require "util.hashes".sha256, require "util.jid".node;
local get_module, clock = require "core.modulemanager".get_module, require "util.time".now;
local roles_are_a_map = not require "core.usermanager".set_user_role;
local wrote = false;

local function fail(kind, detail) error({ failed = kind, detail = detail }, 0); end
local function read(value, err)
  if value == nil and err ~= nil then fail("storage"); end
  return value;
end
local function written(ok) if not ok then fail("storage"); end end

local function find_hosts(name)
  local found = {};
  if name then
    if not prosody.hosts[name] then fail("host", name); end
    local mod = get_module(name, "invites");
    if not mod then fail("module", name); end
    found[1] = { name = name, module = mod.module, shelves = {} };
    return found;
  end
  for each in pairs(prosody.hosts) do
    local mod = get_module(each, "invites");
    if mod then found[#found + 1] = { name = each, module = mod.module, shelves = {} }; end
  end
  if not found[1] then fail("module"); end
  return found;
end

local STORES = { "invite_token", "CONTACT_STORE" };
local function open_shelf(host, store)
  local shelf = host.shelves[store];
  if not shelf then
    local map = host.module:open_store(store, "map");
    shelf = { host = host, store = store, map = map, changes = {} };
    if map.keyval_store then shelf.rows = read(map.keyval_store:get(nil)) or {}; end
    host.shelves[store] = shelf;
  end
  return shelf;
end
local function get_row(shelf, token)
  if shelf.rows then return shelf.rows[token]; end
  return read(shelf.map:get(nil, token));
end
local function save(host)
  for _, store in ipairs(STORES) do
    local shelf = host.shelves[store];
    if shelf and next(shelf.changes) ~= nil then
      wrote = true;
      if shelf.rows then
        for token, row in pairs(shelf.changes) do shelf.rows[token] = row or nil; end
        written(shelf.map.keyval_store:set(nil, shelf.rows));
      else
        for token, row in pairs(shelf.changes) do
          if not row then shelf.changes[token] = shelf.map.remove; end
        end
        written(shelf.map:set_keys(nil, shelf.changes));
      end
    end
  end
end

local function own_row_of_user(host, row, expires)
  local user = row.type == "roster" and jid_node(row.jid);
  if user then
    wrote = true;
    written(host.module:open_store("invite_token", "map"):set(user, row.token, expires));
  end
end
local function get_state(row, now)
  local own = row.invites_api or {};
  if not row.reusable and (own.uses or 0) > 0 then return "used"; end
  if own.revoked_by then return "revoked"; end
  if now > (own.expires or row.expires or 0) then return "expired"; end
  return "pending";
end
local function is_gone(shelf, row)
  if shelf.store == "invite_token" or row.expires == 0 then return false; end
  return not read(shelf.host.module:open_store("invite_token", "map"):get(jid_node(row.jid), row.token));
end
local function find_row(token, name)
  for _, host in ipairs(find_hosts(name)) do
    for _, store in ipairs(STORES) do
      local shelf = open_shelf(host, store);
      local row = get_row(shelf, token);
      if row and not is_gone(shelf, row) then return row, shelf, host; end
    end
  end
end
local function close(host, row, now)
  local own = row.invites_api;
  own.closed_at = now;
  if not own.expires then
    own_row_of_user(host, row, nil);
    own.expires = row.expires;
    row.expires = 0;
  end
end
local function copy_without(map, name)
  local copy = {};
  for key, value in pairs(map) do if key ~= name then copy[key] = value; end end
  return copy;
end
local function without_history(row)
  if not (row and row.invites_api and row.invites_api.redemptions) then return row; end
  local copy = copy_without(row, "invites_api");
  copy.invites_api = copy_without(row.invites_api, "redemptions");
  return copy;
end
local function get_redemption(row, id)
  for _, one in ipairs((row.invites_api or {}).redemptions or {}) do
    if one.id == id then return one; end
  end
end
local function add_redemption(row, one)
  local own = row.invites_api or {};
  local list = own.redemptions or {};
  if #list >= MAX_REDEMPTIONS then fail("full"); end
  list[#list + 1] = one;
  own.redemptions = list;
  row.invites_api = own;
end

local function get_position(token, row)
  local added_at = (row.invites_api or {}).added_at or ("%018.0f"):format((tonumber(row.created_at) or 0) * 1e6);
  return added_at.."-"..sha256(token, true):sub(1, 16);
end
local function check_count(count, most) if count > most then fail("many", most); end end
local function count_in_sql(host, store, most)
  local engines = host.module:shared("/*/sql/connections");
  local uri, engine = next(engines);
  if not engine or next(engines, uri) then return 0; end
  local count = 0;
  engine:transaction(function()
    local query = 'SELECT COUNT(*) FROM (SELECT 1 FROM "prosody" WHERE "host"=? AND "user"=? AND "store"=? LIMIT '
      ..("%d"):format(most + 1)..') AS "counted";';
    for row in engine:select(query, host.name, "", store) do count = tonumber(row[1]); end
  end);
  return count;
end
local function scan(host, count, most, each)
  for _, store in ipairs(STORES) do
    local shelf = open_shelf(host, store);
    local rows = shelf.rows;
    if not rows then
      local ok, counted = pcall(count_in_sql, host, store, most);
      if ok then check_count(count + counted, most); end
      rows = read(host.module:open_store(store):get(nil)) or {};
    end
    for token, row in pairs(rows) do
      count = count + 1;
      check_count(count, most);
      if type(token) == "string" and type(row) == "table" then each(token, row, shelf); end
    end
  end
  return count;
end
local function up(one, other) return one.position < other.position; end
local function down(one, other) return one.position > other.position; end
local function get_source(row)
  local source = (row.additional_data or {}).source;
  return type(source) == "string" and source or "prosody";
end

local verbs = {};
function verbs.hosts()
  local names = {};
  for i, host in ipairs(find_hosts()) do names[i] = host.name; end
  return { hosts = names };
end
function verbs.apis()
  local names = {};
  for _, host in ipairs(find_hosts()) do
    local api = get_module(host.name, "invites_api");
    local keys = api and read(api.module:open_store("invite_api_keys"):get(nil));
    if keys and next(keys) ~= nil then names[#names + 1] = host.name; end
  end
  return { hosts = names };
end
function verbs.find(call)
  local row, _, host = find_row(call.token);
  return { row = call.history and row or without_history(row), host = host and host.name };
end

local function make_row(group, token)
  local row = json.decode(group.row);
  row.token, row.uri = token, group.uri[1]..token..group.uri[2];
  local data = row.additional_data;
  if data.roles and roles_are_a_map then
    local map = {};
    for _, role in ipairs(data.roles) do map[role] = true; end
    data.roles = map;
  end
  return row;
end
function verbs.add(call)
  local hosts, by_name, made = find_hosts(), {}, {};
  for _, host in ipairs(hosts) do by_name[host.name] = host; end
  local function is_there(token)
    for _, host in ipairs(hosts) do
      for _, store in ipairs(STORES) do
        if get_row(open_shelf(host, store), token) then return true; end
      end
    end
  end
  for _, group in ipairs(call.groups) do
    local host = by_name[group.host] or find_hosts(group.host)[1];
    for _, token in ipairs(group.tokens) do
      if not is_there(token) then made[#made + 1] = { host, group.store, make_row(group, token) };
      elseif not call.if_absent then fail("exists"); end
    end
  end
  local now = clock() * 1e6;
  for i, one in ipairs(made) do
    one[3].invites_api = one[3].invites_api or {};
    one[3].invites_api.added_at = ("%018.0f"):format(now + i);
    if one[3].expires ~= 0 then one[1].module:fire_event("invite-created", one[3]); end
  end
  for _, one in ipairs(made) do
    local host, store, row = one[1], one[2], one[3];
    if row.expires ~= 0 then own_row_of_user(host, row, row.expires); end
    open_shelf(host, store).changes[row.token] = row;
  end
  for _, host in ipairs(hosts) do save(host); end
  return {};
end

function verbs.redeem(call)
  local row, shelf, host = find_row(call.token, call.host);
  if not row then return { outcome = "refused" }; end
  local answer = { outcome = "refused", row = without_history(row), host = host.name };
  local known = get_redemption(row, call.id);
  if known then
    answer.outcome = known.released and "released" or known.by == call.redeemer and "repeated" or "conflict";
    return answer;
  end
  local account = row.type ~= "roster" and (jid_node(row.jid) or (row.additional_data or {}).allow_reset);
  if get_state(row, call.now) ~= "pending" or (account and account ~= call.username) then return answer; end
  add_redemption(row, { id = call.id, by = call.redeemer, at = call.now });
  row.invites_api.uses = (row.invites_api.uses or 0) + 1;
  if not row.reusable then close(host, row, call.now); end
  shelf.changes[call.token] = row;
  save(host);
  return { outcome = "redeemed", row = without_history(row), host = host.name };
end

function verbs.release(call)
  local row, shelf, host = find_row(call.token, call.host);
  if not row then return {}; end
  local known = get_redemption(row, call.id);
  if not known then
    add_redemption(row, { id = call.id, released = call.now });
  elseif not known.released then
    local own = row.invites_api;
    known.released = call.now;
    own.uses = own.uses - 1;
    if own.expires and not own.revoked_by then
      own_row_of_user(host, row, own.expires);
      row.expires, own.expires, own.closed_at = own.expires, nil, nil;
    end
  end
  shelf.changes[call.token] = row;
  save(host);
  return { row = without_history(row), host = host.name };
end

function verbs.revoke(call)
  local row, shelf, host = find_row(call.token, call.host);
  if not row then return { revoked = false }; end
  local revoked = get_state(row, call.now) == "pending";
  if revoked then
    row.invites_api = row.invites_api or {};
    row.invites_api.revoked_by = call.by;
    close(host, row, call.now);
    shelf.changes[call.token] = row;
    save(host);
  end
  return { revoked = revoked, row = without_history(row), host = host.name };
end

function verbs.list(call)
  local host, found, page = find_hosts(call.host)[1], {}, {};
  scan(host, 0, call.most, function(token, row, shelf)
    if (not call.source or get_source(row) == call.source)
    and (not call.state or get_state(row, call.now) == call.state) then
      local position = get_position(token, row);
      if not call.cursor or position < call.cursor then
        found[#found + 1] = { position = position, token = token, row = row, shelf = shelf };
      end
    end
  end);
  table.sort(found, down);
  for i = 1, math.min(#found, call.limit) do
    local one = found[i];
    if not is_gone(one.shelf, one.row) then page[#page + 1] = { one.token, without_history(one.row) }; end
  end
  return { rows = page, next = #found > call.limit and found[call.limit].position or nil };
end

local function find_after(call, hosts, admits)
  local found, count = {}, 0;
  for _, host in ipairs(hosts) do
    count = scan(host, count, call.most, function(token, row, shelf)
      local position = get_position(token, row);
      if (not call.cursor or position > call.cursor) and admits(row) then
        found[#found + 1] = { position = position, token = token, row = row, shelf = shelf, host = host };
      end
    end);
  end
  table.sort(found, up);
  return found, math.min(#found, call.limit);
end

function verbs.revoke_from(call)
  local hosts, changed = find_hosts(call.host), 0;
  local found, count = find_after(call, hosts, function(row)
    local state = get_state(row, call.now);
    return (state == "pending" or state == "used") and not (row.invites_api or {}).revoked_by
      and get_source(row) == call.source;
  end);
  for i = 1, count do
    local row = found[i].row;
    local state = get_state(row, call.now);
    row.invites_api = row.invites_api or {};
    row.invites_api.revoked_by = call.by;
    if state == "pending" then close(hosts[1], row, call.now); changed = changed + 1; end
    found[i].shelf.changes[found[i].token] = row;
  end
  save(hosts[1]);
  return { changed = changed, next = #found > count and found[count].position or nil };
end

function verbs.purge(call)
  local hosts, changed = find_hosts(), 0;
  local found, count = find_after(call, hosts, function() return true; end);
  for i = 1, count do
    local one = found[i];
    local own = one.row.invites_api or {};
    local over = own.closed_at or own.expires or one.row.expires;
    if over and over ~= NEVER and over < call.before then
      own_row_of_user(one.host, one.row, nil);
      one.shelf.changes[one.token] = false;
      changed = changed + 1;
    end
  end
  for _, host in ipairs(hosts) do save(host); end
  return { changed = changed, next = #found > count and found[count].position or nil };
end

local function run(verb, text)
  wrote = false;
  local ok, answer = pcall(function() return json.encode(verb(json.decode(base64.decode(text)))); end);
  if ok then return base64.encode(answer); end
  if type(answer) ~= "table" then answer = { failed = "lua", detail = tostring(answer) }; end
  answer.wrote = wrote;
  return base64.encode(json.encode(answer));
end
return function(name, text) return run(verbs[name], text); end
end)()
""".replace("CONTACT_STORE", CONTACT_STORE)
    .replace("MAX_REDEMPTIONS", str(MAX_REDEMPTIONS))
    .replace("NEVER", str(NEVER_EXPIRES))
)

PRELUDE: Final = "> " + " ".join(line.strip() for line in _PRELUDE.split("\n") if line.strip())
