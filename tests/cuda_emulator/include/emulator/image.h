// What the library's own ELF file says: names of kernels (they may be local symbols, which dladdr
// does not know) and where static shared memory lies.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

struct Range {
  char* begin;
  size_t size;
  bool holds(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - begin) < size;
  }
};

// void a::(anonymous namespace)::kernel<float, 4>(float const*) -> kernel<float, 4>
inline std::string short_name(const char* mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  for (const char* noise : {"(anonymous namespace)::", "torchext::"}) {
    for (size_t at; (at = name.find(noise)) != std::string::npos;) {
      name.erase(at, std::string(noise).size());
    }
  }
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    depth += (c == '<') - (c == '>');
    if (depth == 0 && c == '(') return name.substr(begin, i - begin);
    if (depth == 0 && (c == ' ' || c == ':')) begin = i + 1;
  }
  return name.substr(begin);
}

class Image {
 public:
  Image() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(&short_name), &info) == 0) return;
    auto* base = static_cast<char*>(info.dli_fbase);
    const int file = open(info.dli_fname, O_RDONLY | O_CLOEXEC);
    struct stat status{};
    if (file < 0 || fstat(file, &status) != 0) return;
    const auto bytes = static_cast<size_t>(status.st_size);
    void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (memory == MAP_FAILED) return;
    read(static_cast<const char*>(memory), base);
    munmap(memory, bytes);
  }

  const std::vector<Range>& shared() const { return shared_; }

  std::string kernel_name(const void* kernel) const {
    auto found = functions_.find(static_cast<const char*>(kernel));
    return found == functions_.end() ? "unnamed kernel" : short_name(found->second.c_str());
  }

 private:
  void read(const char* file, char* base) {
    auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
    auto* sections = reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff);
    std::map<char*, std::pair<std::string, size_t>> statics;  // of functions: _ZZ<function>E<name>
    std::set<std::string> owners;                             // functions with a marker
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const char* strings = file + sections[sections[i].sh_link].sh_offset;
      auto* symbol = reinterpret_cast<const Elf64_Sym*>(file + sections[i].sh_offset);
      for (size_t n = sections[i].sh_size / sizeof(Elf64_Sym); n > 0; --n, ++symbol) {
        if (symbol->st_shndx == SHN_UNDEF) continue;
        const std::string name = strings + symbol->st_name;
        char* address = base + symbol->st_value;
        if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC) {
          functions_.emplace(address, name);
        } else if (ELF64_ST_TYPE(symbol->st_info) == STT_OBJECT && name.rfind("_ZZ", 0) == 0) {
          const size_t marker = name.rfind("emulated_shared_");
          if (marker == std::string::npos) {
            statics[address] = {name, symbol->st_size};
          } else {
            owners.insert(name.substr(0, name.find_last_not_of("0123456789", marker - 1) + 1));
          }
        }
      }
    }
    for (const auto& [address, variable] : statics) {
      const auto& [name, size] = variable;
      for (size_t at = name.find('E'); at != std::string::npos; at = name.find('E', at + 1)) {
        if (owners.count(name.substr(0, at + 1)) == 0) continue;
        shared_.push_back({address, size});
        break;
      }
    }
  }

  std::vector<Range> shared_;
  std::map<const char*, std::string> functions_;
};

inline const Image& image() {
  static const Image value;
  return value;
}

}  // namespace emulator
