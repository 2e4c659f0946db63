"""The Lua of the prelude that reads and writes rows, wherever Prosody keeps them, and tells what they are.

Its lines are joined by spaces, so there is no comment in it; what it does is said in the module of the prelude.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LUA_ROWS"]

LUA_ROWS: Final = """
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
    found[1] = { name = name, module = mod.module, shelves = {}, users = {} };
    return found;
  end
  for each in pairs(prosody.hosts) do
    local mod = get_module(each, "invites");
    if mod then found[#found + 1] = { name = each, module = mod.module, shelves = {}, users = {} }; end
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
local function set_keys(map, user, changes)
  for token, value in pairs(changes) do
    if not value then changes[token] = map.remove; end
  end
  wrote = true;
  written(map:set_keys(user, changes));
end
local function save(host)
  for user, changes in pairs(host.users) do
    set_keys(host.module:open_store("invite_token", "map"), user, changes);
  end
  host.users = {};
  for _, store in ipairs(STORES) do
    local shelf = host.shelves[store];
    if shelf and next(shelf.changes) ~= nil then
      if shelf.rows then
        for token, row in pairs(shelf.changes) do shelf.rows[token] = row or nil; end
        wrote = true;
        written(shelf.map.keyval_store:set(nil, shelf.rows));
      else
        set_keys(shelf.map, nil, shelf.changes);
      end
      shelf.changes = {};
    end
  end
end

local function own_row_of_user(host, token, row, expires)
  local user = row.type == "roster" and jid_node(row.jid);
  if user then
    host.users[user] = host.users[user] or {};
    host.users[user][token] = expires;
  end
end
local function is_number(value) return type(value) == "number" and value >= -62135596800 and value <= NEVER; end
local function is_table_or_nil(value) return value == nil or type(value) == "table"; end
local function is_sound(row)
  if type(row) ~= "table" or (row.type ~= "register" and row.type ~= "roster") or type(row.jid) ~= "string"
  or not is_number(row.created_at) or not is_number(row.expires)
  or not is_table_or_nil(row.additional_data) or not is_table_or_nil(row.invites_api) then return false; end
  local own = row.invites_api or {};
  return is_table_or_nil(own.redemptions) and (own.expires == nil or is_number(own.expires))
    and (own.uses == nil or is_number(own.uses)) and (own.closed_at == nil or is_number(own.closed_at));
end
local function get_state(row, now)
  local own = row.invites_api or {};
  if not row.reusable and (own.uses or 0) > 0 then return "used"; end
  if own.revoked_by then return "revoked"; end
  if now > (own.expires or row.expires) then return "expired"; end
  return "pending";
end
local function is_gone(shelf, token, row)
  if shelf.store == "invite_token" or row.expires == 0 or (row.invites_api or {}).closing then return false; end
  return not read(shelf.host.module:open_store("invite_token", "map"):get(jid_node(row.jid), token));
end
local function find_row(token, name)
  for _, host in ipairs(find_hosts(name)) do
    for _, store in ipairs(STORES) do
      local shelf = open_shelf(host, store);
      local row = get_row(shelf, token);
      if row and not (is_sound(row) and is_gone(shelf, token, row)) then return row, shelf, host; end
    end
  end
end
local function find_sound_row(token, name)
  local row, shelf, host = find_row(token, name);
  if row and not is_sound(row) then fail("unsound"); end
  return row, shelf, host;
end
local function announce_closing(shelf, token, row)
  if shelf.store == "invite_token" or row.expires == 0 then return; end
  row.invites_api = row.invites_api or {};
  if not row.invites_api.closing then
    row.invites_api.closing = true;
    shelf.changes[token] = row;
  end
end
local function close(host, token, row, now)
  local own = row.invites_api;
  own.closed_at = now;
  if not own.expires then
    own_row_of_user(host, token, row, false);
    own.expires, own.closing = row.expires, nil;
    row.expires = 0;
  end
end
local function copy_without(map, name)
  local copy = {};
  for key, value in pairs(map) do if key ~= name then copy[key] = value; end end
  return copy;
end
local function without_history(row)
  if not (row.invites_api and row.invites_api.redemptions) then return row; end
  local copy = copy_without(row, "invites_api");
  copy.invites_api = copy_without(row.invites_api, "redemptions");
  return copy;
end
local function show(row, history)
  if row == nil then return nil; end
  return base64.encode(is_sound(row) and json.encode(history and row or without_history(row)) or "");
end
local function get_redemption(row, id)
  for _, one in ipairs((row.invites_api or {}).redemptions or {}) do
    if type(one) == "table" and one.id == id then return one; end
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
  local added_at = is_sound(row) and (row.invites_api or {}).added_at;
  if type(added_at) ~= "string" or not added_at:match("^"..("%d"):rep(18).."$") then
    local created_at = is_sound(row) and row.created_at or 0;
    added_at = ("%018.0f"):format(math.max(0, math.min(created_at * 1e6, 1e17)));
  end
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
local function scan(host, most, each)
  local count = 0;
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
      if type(token) == "string" then each(token, row, shelf); end
    end
  end
end
local function up(one, other) return one.position < other.position; end
local function mark_of(host) return sha256(host.name, true):sub(1, 16); end
local function down(one, other) return one.position > other.position; end
local function get_source(row)
  local source = (row.additional_data or {}).source;
  return type(source) == "string" and source or "prosody";
end
"""
