#pragma once

#include <cstdint>
#include <map>
#include <tuple>

#include "fabric/transfer.h"

namespace fabrickv::fabric {

// The registered sources of a rail. They may overlap, and lie at the same place twice. Owner thread.
class LocalRegions {
 public:
  void insert(Region& region) { update(entries_.insert_or_assign(key_of(region), Entry{&region, nullptr}).first); }

  void erase(const Region& region) {
    const auto found = entries_.find(key_of(region));
    if (found != entries_.end()) update(entries_.erase(found));
  }

  void clear() { entries_.clear(); }

  // The region that covers the most of a mapping from `offset` on; null when none covers its byte.
  Region* find(const memory::Mapping& mapping, uint64_t offset) const {
    const auto next = entries_.upper_bound({mapping.serial(), offset, UINT64_MAX});
    if (next == entries_.begin()) return nullptr;
    Region* widest = std::prev(next)->second.widest;
    return widest->mapping.get() == &mapping && end_of(*widest) > offset ? widest : nullptr;
  }

 private:
  // Mapping, offset and region, so that each has a place of its own.
  using Key = std::tuple<uint64_t, uint64_t, uint64_t>;
  struct Entry {
    Region* region;
    // The one that ends last, of this one and all that begin before it in the same mapping.
    Region* widest;
  };
  using Entries = std::map<Key, Entry>;

  static Key key_of(const Region& region) { return {region.mapping->serial(), region.offset, region.id}; }
  static uint64_t end_of(const Region& region) { return region.offset + region.length; }

  // Finds the widest anew from here on, as far as it changes.
  void update(Entries::iterator from) {
    if (from == entries_.end()) return;
    const uint64_t mapping = std::get<0>(from->first);
    Region* widest = nullptr;
    if (from != entries_.begin() && std::get<0>(std::prev(from)->first) == mapping)
      widest = std::prev(from)->second.widest;
    for (; from != entries_.end() && std::get<0>(from->first) == mapping; ++from) {
      Entry& entry = from->second;
      if (widest == nullptr || end_of(*entry.region) > end_of(*widest)) widest = entry.region;
      if (entry.widest == widest) return;
      entry.widest = widest;
    }
  }

  Entries entries_;
};

}  // namespace fabrickv::fabric
