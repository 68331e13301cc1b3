#pragma once

namespace fabrickv::fabric {

// A first-in-first-out list through members of its elements, so that queueing allocates nothing. An element is in at
// most one list of its type.
template <typename T>
class IntrusiveList {
 public:
  // The members that an element inherits.
  class Hook {
   public:
    // The list that the element is in, or null.
    IntrusiveList* list() const { return list_; }

   private:
    friend class IntrusiveList;
    IntrusiveList* list_ = nullptr;
    T* previous_ = nullptr;
    T* next_ = nullptr;
  };

  bool empty() const { return first_ == nullptr; }
  T* front() const { return first_; }

  void push_back(T& element) {
    Hook& hook = element;
    hook.list_ = this;
    hook.previous_ = last_;
    hook.next_ = nullptr;
    if (last_ == nullptr) {
      first_ = &element;
    } else {
      static_cast<Hook&>(*last_).next_ = &element;
    }
    last_ = &element;
  }

  // Takes an element out of the list that it is in, if any.
  static void remove(T& element) {
    Hook& hook = element;
    if (hook.list_ == nullptr) return;
    IntrusiveList& list = *hook.list_;
    (hook.previous_ == nullptr ? list.first_ : static_cast<Hook&>(*hook.previous_).next_) = hook.next_;
    (hook.next_ == nullptr ? list.last_ : static_cast<Hook&>(*hook.next_).previous_) = hook.previous_;
    hook.list_ = nullptr;
    hook.previous_ = nullptr;
    hook.next_ = nullptr;
  }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace fabrickv::fabric
